"""The command line: signatures in app.py, one module per group of verbs, Rich only in render.py."""
