"""Priors behind one protocol: where candidate actions come from, without asking the policy."""
