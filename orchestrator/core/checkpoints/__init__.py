"""What a checkpoint store holds, as values."""
