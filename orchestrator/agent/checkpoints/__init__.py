"""Where checkpoints go from this machine: a bucket by URL, a Hub repository, or a home box that calls in."""
