"""Provider `local`: this computer."""
