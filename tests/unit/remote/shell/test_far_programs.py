"""Which Python runs what gptctl sends, and a `~` in it on host `local`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from orchestrator.core.ports import Address, Shell
from orchestrator.remote.far_python import far_python
from orchestrator.remote.shell.local_shell import LocalShell


class Far:
    """As much of a shell over SSH as the rule asks for."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def openssh(self) -> Sequence[str]:
        return ["ssh", "me@box"]


@pytest.mark.parametrize(("given", "runs"), [(None, "python3"), ("~/venv/bin/python", "~/venv/bin/python")])
def test_the_home_box_and_transfers_run_the_python_of_the_entry(given: str | None, runs: str) -> None:
    assert far_python(cast(Shell, Far(Address("box", python=given)))) == runs


def test_on_this_computer_it_is_the_python_that_runs_gptctl() -> None:
    assert far_python(LocalShell(Address())) == sys.executable
    assert far_python(LocalShell(Address(python="/opt/python"))) == "/opt/python"


def test_a_program_under_the_home_folder_is_found_on_host_local(
    gptctl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "venv" / "python"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho found $1\n")
    program.chmod(0o755)
    assert LocalShell(Address()).run(["~/venv/python", "~"]).stdout == b"found ~\n"
