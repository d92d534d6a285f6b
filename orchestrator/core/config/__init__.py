"""What the user wrote: recipe, inventory, settings, and where gptctl keeps its files."""
