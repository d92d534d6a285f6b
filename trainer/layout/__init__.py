"""Which bytes of a file are token ids, and which files are a dataset's: one rule for this computer and the machine."""
