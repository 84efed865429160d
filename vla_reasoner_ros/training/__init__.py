"""Training of prior, value, world model and policy from recordings, and their report cards."""
