"""Text in: documents from files, split, encoded in several processes, resumable."""
