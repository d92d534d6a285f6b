"""Every command of the guides on sweeps and drivers is one that gptctl takes, with these options, and their files are
valid. That those of the walk-through do what it says is tests/stories/runs/test_seven_interventions.py."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import pytest

from orchestrator.cli.driver.driver import PASSED_ON, split
from orchestrator.core.config.sweep import SweepFile, arms_of, load_sweep
from orchestrator.core.config.toml_tables import build
from tests.support.files.repository import REPOSITORY
from tests.support.machines.in_process import commands

GUIDES = {
    name: (REPOSITORY / "docs" / "guides" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("sweeps", "seven-interventions", "driver")
}
BLOCKS = [
    block for text in GUIDES.values() for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
COMMANDS = sorted(set(re.findall(r"^gptctl ([^#\n]+)", "".join(BLOCKS), re.MULTILINE)))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_guides_is_taken(line: str) -> None:
    driver, words = split(shlex.split(line))
    assert driver is None or words[0] in PASSED_ON
    command: Any = commands()
    while hasattr(command, "get_command"):
        context = command.make_context("gptctl", words[:0], resilient_parsing=True)
        if not words or words[0].startswith("-"):
            break  # a group that is a command as well
        command, words = command.get_command(context, words[0]), words[1:]
        assert command is not None, line
    with command.make_context("gptctl", words, resilient_parsing=not words) as context:
        assert context.params is not None


@pytest.mark.parametrize("name", ["sweeps", "seven-interventions"])
def test_the_files_of_the_guides_are_valid(name: str) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", GUIDES[name], re.DOTALL)
    file = build(SweepFile, tomllib.loads(text), "the guide")
    assert file.limits.max_cost_usd == 90
    if name == "seven-interventions":
        assert file == load_sweep(REPOSITORY / "sweeps" / "interventions.toml")


def test_the_bundled_sweep_is_valid() -> None:
    path = REPOSITORY / "sweeps" / "interventions.toml"
    assert len(arms_of(load_sweep(path), REPOSITORY / "recipes")) == 8
