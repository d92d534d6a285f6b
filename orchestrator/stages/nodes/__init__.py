"""What a run over several nodes asks of them together: that they meet, and that none is forgotten at the end."""
