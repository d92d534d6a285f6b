"""The runs of the past: what they are called, what they keep here, and how that goes away."""
