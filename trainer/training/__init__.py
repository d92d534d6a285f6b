"""The loop and what it needs: start, ranks, metrics, saving, and the end."""
