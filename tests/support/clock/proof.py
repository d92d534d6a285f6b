"""An end is proven here as soon as two rounds of looking agree: a machine that relapses is a row of tests/faults, and
nobody else waits for one. For tests alone: the product has no such setting.

Run as a program, it is `python -m orchestrator` with that: `python tests/support/clock/proof.py release RUN`.
"""

from __future__ import annotations

import os
import sys

from orchestrator.core.fleet import end_proof

REAL_S = end_proof.STANDS_S
VARIABLE = "GPTCTL_TEST_PROOF_S"
"""Another time for which an end must stand."""


def shorten() -> None:
    """From now on, in this process."""
    end_proof.STANDS_S = float(os.environ.get(VARIABLE, "0"))


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as with -m
    shorten()
    from orchestrator.__main__ import main

    main()
