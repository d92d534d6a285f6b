"""What the stages find out about a run and its rental, as values that the ledger stores."""
