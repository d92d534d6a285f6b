"""Makes this machine ready: its interpreter, its environment, its host key."""
