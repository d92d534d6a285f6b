"""`gptctl check` and its drill: finds what would fail, before anything is bought."""
