"""Clocks that a test can put forward, for every Python program that has this folder on its PYTHONPATH.

The file GPTCTL_TEST_WALL names says by how many seconds the wall clock is ahead, GPTCTL_TEST_STEADY the same for the
clocks that count on from the boot. A sleeping laptop's steady clock stands still (CLOCK_MONOTONIC does not count the
time asleep); on a machine that is awake all of them go on.
"""

import os
import time

_clocks = (time.time, time.monotonic, time.clock_gettime)


def _ahead(variable: str) -> float:
    try:
        with open(os.environ[variable]) as file:
            return float(file.read())
    except (KeyError, OSError):
        return 0.0


time.time = lambda: _clocks[0]() + _ahead("GPTCTL_TEST_WALL")
time.monotonic = lambda: _clocks[1]() + _ahead("GPTCTL_TEST_STEADY")
time.clock_gettime = lambda clock: _clocks[2](clock) + _ahead("GPTCTL_TEST_STEADY")
