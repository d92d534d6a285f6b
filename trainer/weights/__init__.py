"""Weights that other programs wrote, as this trainer's tensors."""
