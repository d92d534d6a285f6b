"""How a training ended, and what follows when its machine is gone."""
