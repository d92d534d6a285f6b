"""The model: GPT, its loss, optimizers and generation."""
