"""The eight stages of a run, one function each: look at the world first, then do only what is missing."""
