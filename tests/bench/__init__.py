"""Benchmarks: figures side by side in one run, never a pass or a fail. `make bench` runs them all."""
