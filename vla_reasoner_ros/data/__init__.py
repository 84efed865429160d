"""Streams, bags and episodes: from recordings and live topics to aligned observations."""
