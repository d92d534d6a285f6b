"""Pure values: recipes, machines, plans, costs, states, errors and the seams. No input or output but reading a file."""
