"""Benchmarks of the trainer: rates, memory, what a step launches, tokens to a loss."""
