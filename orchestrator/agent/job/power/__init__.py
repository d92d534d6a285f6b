"""The power of an own machine: what starts the agent again when it boots, and what keeps it awake while it trains."""
