"""Trains GPT-2-class models: a run folder in, metrics and checkpoints out. Knows nothing of whoever started it."""
