"""Runs training on machines, from recipe to checkpoint. The way in is `pipeline.py`; the program is `__main__.py`."""
