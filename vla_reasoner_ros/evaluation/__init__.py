"""Closed loops, paired statistics and reports."""
