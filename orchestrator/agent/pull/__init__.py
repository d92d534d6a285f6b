"""Brings data onto this machine by ranged requests and assembles it, every part verified."""
