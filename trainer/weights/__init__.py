"""Weights and tokenizers in other programs' layouts: read as this trainer's tensors, and written from them."""
