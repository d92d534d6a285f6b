"""What is made on a machine is closed to its other users, whatever the umask there: every folder on the way too."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from orchestrator.remote.agent_client.boot import BOOT
from orchestrator.remote.transfer import far_program
from orchestrator.stores.home_box import LOOK

QUESTION = {"size_bytes": 1, "stamp": "s", "streams": 1, "afresh": False, "files": {}, "digest": "d"}


def a_tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("inner/deep/a.py"))
    return content.getvalue()


@pytest.mark.parametrize("program", ["boot", "look", "prepare", "unpack", "home box"])
def test_every_folder_is_closed_even_under_umask_zero(tmp_path: Path, program: str) -> None:
    place = tmp_path / "a" / "b" / "c"
    far = Path(far_program.__file__).read_text()
    question = json.dumps({**QUESTION, "folder": str(place), "path": str(place / "file")}).encode()
    argv, stdin = {
        "boot": ([BOOT, str(place / "agent-1.pyz"), "where"], b"{}"),
        "look": ([far, "look"], question),
        "prepare": ([far, "prepare"], question),
        "unpack": ([far, "unpack", str(place)], a_tar()),
        "home box": ([LOOK, str(place)], b""),
    }[program]
    before = os.umask(0)
    try:
        subprocess.run([sys.executable, "-I", "-S", "-c", *argv], input=stdin, capture_output=True, check=False)
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert place in made and {path.stat().st_mode & 0o777 for path in made} == {0o700}
