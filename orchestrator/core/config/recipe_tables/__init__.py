"""The tables of a recipe, and recipes that others wrote."""
