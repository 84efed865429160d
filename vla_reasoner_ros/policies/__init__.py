"""Frozen policies behind one protocol; one file per backend, imported when named."""
