"""Where checkpoints are kept: a Hub repository, a home box; and the trial before anything is bought."""
