"""A machine from its first boot to a host key that is its own."""
