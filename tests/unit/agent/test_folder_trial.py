"""What a folder is good for: on real file systems where root makes one, else on what the system calls answer."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent.system.folder_trial import tried

GOOD = {"write": "", "lock": "", "run": ""}


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A tmpfs with the options of the test's parameter. Needs root, as the tests of links do."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_good_folder_is_left_as_it_was(tmp_path: Path) -> None:
    assert tried(str(tmp_path)) == GOOD
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("mounted", "kind", "words"),
    [
        ("noexec", "run", "Permission denied"),
        ("ro", "write", "Read-only file system"),
        ("nr_inodes=1", "write", "No space left on device"),
    ],
    indirect=["mounted"],
)
def test_a_file_system_that_refuses(mounted: Path, kind: str, words: str) -> None:
    assert tried(str(mounted)) == {**GOOD, kind: words}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert tried(str(tmp_path)) == {**GOOD, "lock": "No locks available"}
