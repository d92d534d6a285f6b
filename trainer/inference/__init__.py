"""Programs that let a finished model answer, talk, and show its attention."""
