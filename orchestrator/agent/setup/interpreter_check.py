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

from ..system.compile_caches import compile_caches

PROGRAM = '''
import importlib.metadata, importlib.util, json, os, shutil, sys, sysconfig, tempfile
import torch
KERNEL = """
import triton
import triton.language as tl
@triton.jit
def double(x, n: tl.constexpr):
    at = tl.arange(0, n)
    tl.store(x + at, tl.load(x + at) * 2)
"""
def computes(device):
    return float((torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)).sum()) == 64.0 ** 3
assert computes("cpu"), "a matrix product on the CPU came out wrong"
count = torch.cuda.device_count()
for index in range(count):
    assert computes("cuda:%d" % index), "a matrix product on GPU %d came out wrong" % index
if count > 1:
    import torch.cuda.nccl
    parts = [torch.ones(8, device="cuda:%d" % index) for index in range(count)]
    torch.cuda.nccl.all_reduce(parts)
    assert all(float(part[0]) == count for part in parts), "an all-reduce over the GPUs came out wrong"
def run_kernel():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gptctl_kernel.py")
        with open(path, "w") as file:
            file.write(KERNEL)
        spec = importlib.util.spec_from_file_location("gptctl_kernel", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        x = torch.ones(64, device="cuda")
        module.double[(1,)](x, 64)
        assert float(x.sum()) == 128.0, "a Triton kernel came out wrong"
def compile_fault():
    try:
        run_kernel()
        return None
    except Exception as error:
        said = (str(error).strip() or "no message").splitlines()
        words = "%s: %s" % (type(error).__name__, said[-1][:200])
    least = min(torch.cuda.get_device_capability(index) for index in range(count))
    if least < (7, 0):
        return "Triton needs compute capability 7.0, this card has %d.%d" % least
    if not any(map(shutil.which, ("gcc", "cc", "clang"))) and not os.environ.get("CC"):
        return "no C compiler: apt install gcc python3-dev (%s)" % words
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "no Python.h: apt install python%d.%d-dev (%s)" % (sys.version_info[:2] + (words,))
    return words
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda,
                  "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
                  "compile_fault": compile_fault() if count else None,
                  "packages": {name: version(name) for name in sys.argv[1:]}}))
'''
DEADLINE_S = 240.0


class Checked(TypedDict, total=False):
    """What the program found in an interpreter; `why` instead where it does not compute."""

    torch: str
    cuda: str | None
    gpus: list[str]
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
    return cast("Checked", json.loads(done.stdout.splitlines()[-1]))
