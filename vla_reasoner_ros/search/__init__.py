"""Tree search over continuous actions; knows models only as callables."""
