"""Thin nodes: wiring only."""
