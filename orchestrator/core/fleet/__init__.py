"""What is known about machines beyond one run: whose they are, and when a watcher last looked."""
