"""Bulk bytes to and from a machine: ranges in parallel, trees by tar, resumable and verified."""
