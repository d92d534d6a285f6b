"""What the agent and its callers agree on: names, answers and requests. Both sides import this, and nothing else."""
