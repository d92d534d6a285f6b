"""Another package named `trainer` is named before it can do harm; the PyPI one imports torch when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainer
from orchestrator.cli import trainer_check
from orchestrator.core.errors import UserError

ROOT = Path(__file__).parents[3]


def shadowed(folder: Path) -> Path:
    """A foreign package, with the metadata that pip leaves."""
    package, metadata = folder / "trainer", folder / "trainer-0.0.36.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("raise ImportError('No module named torch')\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: trainer\nVersion: 0.0.36\n")
    (metadata / "RECORD").write_text("trainer/__init__.py,,\ntrainer-0.0.36.dist-info/METADATA,,\n")
    return package / "__init__.py"


def test_the_package_of_this_checkout_is_gptctls_own() -> None:
    trainer_check.check_trainer()
    assert f'DISTRIBUTION = "{trainer.DISTRIBUTION}"' == trainer_check.MARKER


def test_a_foreign_package_is_named_with_its_owner_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = shadowed(tmp_path)
    monkeypatch.delitem(sys.modules, "trainer")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="shadows gptctl's own") as raised:
        trainer_check.check_trainer()
    assert f"{foreign}, installed by trainer 0.0.36" in raised.value.message
    assert "uv tool install 'gptctl[trainer]'" in raised.value.hint


@pytest.mark.parametrize("words", [["status"], ["plan", "quickstart", "--offline"], ["--version"]], ids=" ".join)
def test_every_command_exits_2_with_one_line_and_its_cure(words: list[str], tmp_path: Path) -> None:
    shadowed(tmp_path)
    program = "import sys; from orchestrator.__main__ import main; main()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "GPTCTL_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    first, second = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert first.startswith("gptctl: another package named `trainer` shadows gptctl's own: ")
    assert second.startswith("gptctl: next: give gptctl an environment of its own")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trainer").mkdir()  # what is left when another package's uninstall took __init__.py away
    monkeypatch.delitem(sys.modules, "trainer")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [each for each in sys.meta_path if "Editable" not in str(each)])
    with pytest.raises(UserError, match="is missing"):
        trainer_check.check_trainer()
