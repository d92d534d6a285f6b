"""Every command of the guide on sweeps is one that gptctl takes, with these options, and its file is valid."""

from __future__ import annotations

import re
import shlex
import tomllib

import pytest
import typer

from orchestrator.cli.app import app
from orchestrator.core.config.sweep import SweepFile, arms_of, load_sweep
from orchestrator.core.config.toml_tables import build
from tests.support.files.repository import REPOSITORY

GUIDE = (REPOSITORY / "docs" / "guides" / "sweeps.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^gptctl ([^#\n]+)", GUIDE, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_guide_is_taken(line: str) -> None:
    command, words = typer.main.get_command(app), shlex.split(line)
    while hasattr(command, "get_command"):
        context = command.make_context("gptctl", words[:0], resilient_parsing=True)
        command, words = command.get_command(context, words[0]), words[1:]
        assert command is not None, line
    assert command.make_context("gptctl", words).params


def test_the_guides_file_and_the_bundled_sweep_are_valid() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert build(SweepFile, tomllib.loads(text), "the guide").seeds == 3
    path = REPOSITORY / "sweeps" / "interventions.toml"
    assert len(arms_of(load_sweep(path), REPOSITORY / "recipes")) == 8
