"""Ends this machine's bill without the laptop: when, by which call or power-off, and what if that fails."""
