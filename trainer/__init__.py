"""Trains GPT-2-class models: a run folder in, metrics and checkpoints out. It does not know who started it."""

DISTRIBUTION = "gptctl"
"""Tells gptctl that this is its own trainer: PyPI has another package of this name."""
