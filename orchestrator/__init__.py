"""Runs training on machines: the recipe to the checkpoint. The way in is `pipeline.py`; the program is `__main__.py`."""
