"""A run seen from outside: start a new one, stop it, release its machine, resume from its checkpoint."""
