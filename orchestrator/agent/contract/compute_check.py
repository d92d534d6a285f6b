"""The program that tries out an interpreter, where it keeps what it compiles, and what helps against what it says.

The agent's install job runs it, and so does `gptctl check`, in the same interpreter. It must not be imported by the
program that it checks.

Example::

    cure("Failed to initialize NVML: Driver/library version mismatch")      # "reboot the machine: ..."
"""

from __future__ import annotations

import os
import re

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
        return "no C compiler (%s)" % words
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "no Python.h of Python %d.%d (%s)" % (sys.version_info[:2] + (words,))
    return words
def unusable():
    try:
        torch.cuda.init()
    except Exception as error:
        return str(error).strip()[:300]
    return "no card is visible"
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda,
                  "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
                  "unusable": "" if count else unusable(),
                  "compile_fault": compile_fault() if count else None,
                  "packages": {name: version(name) for name in sys.argv[1:]}}))
'''
CURES = (
    (r"no C compiler", "apt install gcc python3-dev"),
    (r"no Python\.h of Python ([\d.]+)", r"apt install python\1-dev"),
    (r"No space left|Disk quota", "free space there, or set TMPDIR and TRITON_CACHE_DIR to a folder with space"),
    (
        r"Read-only file system|Permission denied|Operation not permitted|failed to map segment",
        "unset TRITON_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR and TMPDIR, or set them to folders you may write and run in",
    ),
    (
        r"Error 80[34]|unsupported display driver|version mismatch|forward compatibility",
        "reboot the machine: its driver was updated while it ran, or the container has another one",
    ),
    (
        r"ECC|Error 802|not yet initialized|unspecified launch failure|NCCL error|Error 46",
        "the machine's own fault: give it back, or reboot it",
    ),
    (r"driver.* too old|driver version is insufficient|no kernel image", "install a build of torch for this driver"),
)
"""What helps against what an interpreter says: a pattern of its words, and the cure."""


def cure(said: str) -> str:
    """What helps against these words; empty where nobody knows."""
    found = ((re.search(pattern, said, re.IGNORECASE), help_) for pattern, help_ in CURES)
    return next((match.expand(help_) for match, help_ in found if match), "")


def caches_below(folder: str) -> dict[str, str]:
    """The variables by which torch and Triton keep compiled code below that folder."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor"),
        "TRITON_CACHE_DIR": os.path.join(folder, "triton"),
    }
