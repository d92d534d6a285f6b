"""Token files and batches: which token stands at which step, for any number of ranks."""
