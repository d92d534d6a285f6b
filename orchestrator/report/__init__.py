"""What a run did and what it cost, from the ledger and the mirrored files. Never asks a machine."""
