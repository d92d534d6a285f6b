"""Ships the agent to a machine and talks to it."""
