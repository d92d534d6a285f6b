"""Tells the user's phone or inbox what happened to a run."""
