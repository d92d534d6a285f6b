"""Token files as values: kinds, layouts, and which part of them a run reads."""
