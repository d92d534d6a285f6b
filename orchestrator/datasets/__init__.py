"""Token files here and far away, and what of them has to move."""
