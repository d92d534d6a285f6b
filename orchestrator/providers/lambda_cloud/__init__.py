"""Provider `lambda`: machines of Lambda Cloud."""
