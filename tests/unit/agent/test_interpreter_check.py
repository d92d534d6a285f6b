"""What an interpreter says when it cannot compute or compile, and what helps: one row for each fault that was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.agent.contract.compute_check import cure
from orchestrator.agent.setup.install import BROKEN
from orchestrator.agent.system import compile_caches, folder_trial

HEALTHY = {"write": "", "lock": "", "run": ""}


@pytest.mark.parametrize(
    ("said", "helps"),
    [
        ("no C compiler (RuntimeError: Failed to find C compiler)", "apt install gcc python3-dev"),
        ("no Python.h of Python 3.12 (CalledProcessError: gcc)", "apt install python3.12-dev"),
        ("OSError: [Errno 28] No space left on device: '/tmp/tmpx/main.c'", "free space there"),
        ("PermissionError: [Errno 13] Permission denied: '/opt/triton/AB'", "unset TRITON_CACHE_DIR"),
        ("OSError: [Errno 30] Read-only file system: '/nix/triton'", "unset TRITON_CACHE_DIR"),
        ("ImportError: /tmp/x.so: failed to map segment from shared object", "unset TRITON_CACHE_DIR"),
        ("Error 803: system has unsupported display driver / cuda driver combination", "reboot the machine"),
        ("Failed to initialize NVML: Driver/library version mismatch", "reboot the machine"),
        ("Error 804: forward compatibility was attempted on non supported HW", "reboot the machine"),
        ("CUDA error: uncorrectable ECC error encountered", "give it back, or reboot it"),
        ("The NVIDIA driver on your system is too old (found version 12060)", "a build of torch for this driver"),
        ("a Triton kernel came out wrong", ""),
    ],
)
def test_each_fault_has_its_cure(said: str, helps: str) -> None:
    found = cure(said)
    assert helps in found and bool(found) == bool(helps)


@pytest.mark.parametrize("said", ["Error 803: unsupported display driver", "Driver/library version mismatch"])
def test_two_drivers_end_the_search_for_an_interpreter(said: str) -> None:
    assert BROKEN.search(f"torch sees 0 of 8 GPUs: {said}")


@pytest.mark.parametrize(
    ("trial", "elsewhere"),
    [
        (HEALTHY, False),
        ({**HEALTHY, "write": "No space left on device"}, True),
        ({**HEALTHY, "run": "Permission denied"}, True),
        ({**HEALTHY, "lock": "No locks available"}, False),
    ],
)
def test_compilers_leave_a_tmp_that_is_full_or_noexec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: dict[str, str], elsewhere: bool
) -> None:
    monkeypatch.setattr(folder_trial, "tried", lambda root: trial)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/set/by/you")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    found = compile_caches.compile_caches(str(tmp_path))
    assert found.pop("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / "inductor")
    assert found == ({"TMPDIR": str(tmp_path / "tmp")} if elsewhere else {})
    assert (tmp_path / "tmp").is_dir() == elsewhere
