"""What the indexes of torch offered in November 2026, and which cards and drivers their builds serve.

Recorded by hand from public lists, because a test asks no network: PyTorch's RELEASE.md ("CUDA Support Matrix"), its
requests 172663 (2.11), 178665 (2.12: no more cu128), 190355 (2.14) and 190385 (2.15: no more cu126), and the file names
that lock files quote. Drivers: NVIDIA's CUDA release notes, minor-version compatibility (CUDA 12: 525, CUDA 13: 580).
"""

from __future__ import annotations

PAGES = {
    "cu126": ("2.6.0", "2.7.0", "2.7.1", "2.8.0", "2.9.0", "2.9.1", "2.10.0", "2.11.0", "2.12.0", "2.12.1", "2.13.0",
              "2.14.0"),
    "cu128": ("2.7.0", "2.7.1", "2.8.0", "2.9.0", "2.9.1", "2.10.0", "2.11.0"),
    "cu130": ("2.9.0", "2.9.1", "2.10.0", "2.11.0", "2.12.0", "2.12.1", "2.13.0", "2.14.0"),
    "cu132": ("2.12.0", "2.12.1", "2.13.0", "2.14.0"),
    "cpu": ("2.9.0", "2.9.1", "2.10.0", "2.11.0", "2.12.0", "2.12.1", "2.13.0", "2.14.0"),
}  # fmt: skip
"""Index -> versions on its page for Linux x86-64."""
PYPI = {"2.9.1": "cu128", "2.10.0": "cu128", "2.11.0": "cu130", "2.12.1": "cu130", "2.13.0": "cu130", "2.14.1": "cu130"}
"""Version on the default index -> the CUDA build it is, from the requirements in its metadata."""
CARDS = {"cu126": ((5, 0), (9, 0)), "cu128": ((7, 5), (12, 0)), "cu130": ((7, 5), (12, 1)), "cu132": ((7, 5), (12, 1))}
"""Least and greatest compute capability of a build."""
LEAST_DRIVER = {"cu126": 525, "cu128": 525, "cu130": 580, "cu132": 580}
