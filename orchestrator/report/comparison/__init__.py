"""Runs side by side, with what a seed alone could change."""
