"""A follower on a machine that has no room left: it only reads, and what is there is what it came for."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orchestrator.agent import follow
from orchestrator.agent.contract.names import JobName
from orchestrator.agent.job.jobs import Job
from orchestrator.agent.system import lease
from orchestrator.agent.system.paths import Places


@pytest.mark.parametrize(
    ("number", "goes_on"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False), (errno.EROFS, False)]
)
def test_a_full_disk_ends_no_follower(
    number: int, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(Places(str(tmp_path / "agent" / "agent.pyz")), "tiny-1130-abcdef", JobName.TRAIN, "d", {"ranks": 1})
    Path(job.folder).mkdir(parents=True)

    def full(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(lease, "renew", full)
    said: list[object] = []
    heart = follow._Heart(job, said.append)
    if goes_on:
        heart.beat()
        assert len(said) == 1
    else:
        with pytest.raises(OSError, match="no"):
            heart.beat()
