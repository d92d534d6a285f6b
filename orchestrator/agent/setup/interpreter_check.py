"""Does an interpreter compute, and can it compile? One program, run in that interpreter, answers both in seconds.

A matrix product on every GPU and an all-reduce over them decide whether it serves. A Triton kernel of three lines tells
whether `torch.compile` can work here: it needs a C compiler, Python's headers, and a folder whose files it may execute.

Example::

    check("/opt/conda/bin/python", ["numpy"], "/root/.gptctl/cache")      # {"torch": "2.13.0", ...} or {"why": ...}
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Sequence, TypedDict, cast

from ..contract.compute_check import PROGRAM, cure
from ..system.compile_caches import compile_caches

DEADLINE_S = 240.0


class Checked(TypedDict, total=False):
    """What the program found in an interpreter; `why` instead where it does not compute."""

    torch: str
    cuda: str | None
    gpus: list[str]
    unusable: str
    compile_fault: str | None
    packages: dict[str, str | None]
    why: str


def check(python: str, names: Sequence[str], cache: str) -> Checked:
    """What the program printed in that interpreter, or `{"why": ...}` with the last line of its complaint.

    names: packages whose versions are asked for. cache: where torch and Triton keep what they compile.
    """
    try:
        done = subprocess.run(
            [python, "-c", PROGRAM, *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
            env={**os.environ, **compile_caches(cache)},
        )
    except OSError as error:
        return {"why": error.strerror or str(error)}
    except subprocess.TimeoutExpired:
        return {"why": "no answer within %d s" % DEADLINE_S}
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["ended with code %d" % done.returncode]
        return {"why": said[-1]}
    found = cast("Checked", json.loads(done.stdout.splitlines()[-1]))
    fault = found.get("compile_fault")
    if fault and cure(fault):
        found["compile_fault"] = "%s: %s" % (fault, cure(fault))
    return found
