"""FSDP2: weights, gradients and optimizer state cut over the ranks, and checkpoints that no rank holds whole."""
