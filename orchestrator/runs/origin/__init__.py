"""What a run begins with: a checkpoint, weights of another model, or what the ledger knows of them."""
