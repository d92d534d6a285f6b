"""The tables inside config.json, and how parsed JSON becomes them. Standard library only; contract.py is the whole."""
