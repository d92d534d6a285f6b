"""A card that fails under a job is named with the kernel's number and its cure; older faults are not this job's."""

from __future__ import annotations

import time

import pytest

from orchestrator.agent.job import gpu_faults

LOG = """
[   12.300000] nvidia: loading out-of-tree module taints kernel.
[  100.000000] NVRM: Xid (PCI:0000:3b:00): 48, pid=1, DBE at ...
[ 5000.120000] NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', GPU has fallen off the bus.
[ 5000.130000] NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', GPU has fallen off the bus.
[ 5001.000000] NVRM: Xid (PCI:0000:65:00): 999, new
"""


@pytest.mark.parametrize(
    ("began_s", "words"),
    [
        (6000.0, ""),
        (
            4000.0,
            "; the kernel says: Xid 79 on 0000:65:00 (fallen off the bus): reboot, and look at heat and power; a second"
            " time, take another machine; the kernel says: Xid 999 on 0000:65:00: look it up in NVIDIA's list of Xid "
            "errors",
        ),
    ],
)
def test_faults_since_the_start_are_told(monkeypatch: pytest.MonkeyPatch, began_s: float, words: str) -> None:
    monkeypatch.setattr(gpu_faults, "_kernel_log", lambda: LOG)
    monkeypatch.setattr(gpu_faults, "_uptime_s", lambda: 7000.0)
    assert gpu_faults.since(time.time() - (7000.0 - began_s)) == words


def test_ecc_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_faults, "_kernel_log", lambda: LOG)
    monkeypatch.setattr(gpu_faults, "_uptime_s", lambda: 7000.0)
    assert "Xid 48 on 0000:3b:00 (double-bit ECC error): take another machine" in gpu_faults.since(time.time() - 6950)


def test_a_log_that_may_not_be_read_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_faults.since(time.time()) == ""
    assert gpu_faults.since(None) == ""
