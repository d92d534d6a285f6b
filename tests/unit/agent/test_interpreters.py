"""What is installed for an interpreter, told by looking at files."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.agent.setup.interpreters import TRAINER_PACKAGES, describe


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An empty virtual environment, as files."""
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.parametrize("line", ["{place}", "../../../../elsewhere"])
def test_packages_that_a_pth_file_adds_are_seen(python: Path, tmp_path: Path, line: str) -> None:
    place = tmp_path / "elsewhere"
    for name in TRAINER_PACKAGES:
        (place / name).mkdir(parents=True)
    (place / "torch" / "version.py").write_text("__version__ = '2.11.0+cu128'\n")
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    assert describe(str(python), "given")["torch"] is None
    (site / "over.pth").write_text(f"# a comment\nimport sys\n/not/there\n{line.format(place=place)}\n")
    found = describe(str(python), "given")
    assert (found["torch"], found["trainer"], found["version"]) == ("2.11.0+cu128", True, "3.12")
