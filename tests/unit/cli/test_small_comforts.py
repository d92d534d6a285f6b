"""Examples in help, completion, the list of recipes, an inventory found upwards, a host that waits behind a #."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import pytest
import typer

import orchestrator
from orchestrator.cli import completion
from orchestrator.cli.examples import EXAMPLES
from orchestrator.cli.failures import say
from orchestrator.core.config.bundled_files import copy_to
from orchestrator.core.config.inventory import load_inventory
from orchestrator.core.errors import UserError
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from tests.support.machines.in_process import commands, invoke

SKILL = Path(orchestrator.__file__).with_name("SKILL.md")


@pytest.mark.parametrize(
    "name", [name for name, command in commands().commands.items() if not hasattr(command, "commands")]
)
def test_every_command_has_examples_that_parse(name: str) -> None:
    assert EXAMPLES.get(name), f"orchestrator/cli/examples.py has none of gptctl {name}"
    for line in EXAMPLES[name]:
        program, command, *words = shlex.split(line)
        assert (program, command) == ("gptctl", name)
        with commands().commands[name].make_context(name, list(words)) as context:
            assert context.params is not None


@pytest.mark.parametrize("line", re.findall(r"^gptctl .*", "".join(SKILL.read_text().split("```")[1::2]), re.M))
def test_every_command_of_the_skill_parses(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = commands().commands[name]
    while isinstance(command, typer.core.TyperGroup):
        command = command.commands[words.pop(0)]  # type: ignore[assignment]
    with command.make_context(name, words) as context:
        assert context.params is not None


def test_the_skill_is_printed_with_its_front_matter() -> None:
    shown = invoke("skill").stdout
    assert shown == SKILL.read_text() and shown.startswith("---\nname: gptctl\n")


def test_help_shows_examples_as_they_are() -> None:
    shown = invoke("run", "--help").output
    assert all(f"  {line}\n" in shown for line in EXAMPLES["run"])


def test_version_names_python_and_torch() -> None:
    assert "(Python 3." in (shown := invoke("--version").output) and "torch" in shown


def test_words_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert completion.runs("") == [] and completion.rentals("") == []
    copy_to(tmp_path)
    with Ledger.open(tmp_path, time.time) as ledger:
        ledger.add_run(RunRecord("quickstart-1", "quickstart", "local", "2xCPU", 1.0, name="first"))
    assert completion.runs("") == ["quickstart-1", "first"] and completion.runs("fi") == ["first"]
    assert completion.hosts("re") == ["rehearsal-8xa100"]
    assert "interventions/qkv_bias" in completion.recipes("interventions/")


def test_completion_is_silent_where_the_files_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inventory.toml").write_text("[hosts")
    (tmp_path / "ledger.db").write_bytes(b"x" * 5000)
    assert completion.hosts("") == [] and completion.runs("") == []


def test_recipes_are_listed_with_what_they_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "broken.toml").write_text("[model]\nlayers = 1\n")
    found = json.loads(invoke("recipes", "--json").stdout)["recipes"]
    listed = {each["name"]: each for each in found}
    assert listed["chinchilla_163m"]["parameters"] == 163_009_536
    assert listed["chinchilla_163m"]["tokens"] == 3_260_190_720 and listed["quickstart"]["description"]
    assert listed["broken"]["problem"] and listed["broken"]["parameters"] is None


def test_an_inventory_is_found_in_a_folder_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (below := tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "inventory.toml").write_text(
        '[hosts.box]\nprovider = "ssh"\naddress = "192.0.2.1"\nmachine = "1x3090"\n'
    )
    monkeypatch.chdir(below)
    assert load_inventory(None, tmp_path / "home").path == tmp_path / "inventory.toml"
    (below.parent / "inventory.toml").write_text("")
    assert load_inventory(None, tmp_path / "home").path == below.parent / "inventory.toml", "the nearest"
    (below.parent / "inventory.toml").unlink()
    below.parent.chmod(0o777)
    assert load_inventory(None, tmp_path / "home").path is None, "others may write there"


@pytest.mark.parametrize("typed", ["lambda-8xa100", "lamda-8xa100"])
def test_a_host_behind_a_hash_is_named_with_its_line(typed: str, tmp_path: Path) -> None:
    copy_to(tmp_path)
    inventory = load_inventory(tmp_path / "inventory.toml", tmp_path)
    with pytest.raises(UserError) as caught:
        inventory.host(typed)
    at = int(caught.value.hint.rpartition("line ")[2].partition(":")[0])
    assert "# [hosts.lambda-8xa100]" in (tmp_path / "inventory.toml").read_text().splitlines()[at - 1]


def test_errors_are_red_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    say("plain")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    say("red")
    monkeypatch.setenv("NO_COLOR", "1")
    say("asked not to")
    plain, red, no_color = capsys.readouterr().err.splitlines()
    assert "\x1b" not in plain + no_color and red.startswith("\x1b[31mgptctl:")
