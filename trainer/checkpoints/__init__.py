"""Checkpoints on disk: written atomically, verified by manifest, read back."""
