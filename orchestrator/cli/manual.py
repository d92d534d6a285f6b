"""The command line's own pages: `cli/help.txt` and `docs/cli.md`, made from the app (`make docs`).

A test compares both files with what this module makes, so they are always true.

Example::

    python -m orchestrator.cli.manual          # in a checkout: writes both
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.app import app

WIDTH = 78
"""What Typer makes of a terminal of 80 columns."""
HELP = Path(__file__).with_name("help.txt")
REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"

INTRODUCTION = """\
# Command line

Made from the program by `make docs`; do not edit. stdout is the result, stderr the conversation. `--json` prints the
result as JSON on every command that has one. RUN is a run's id, its name or the beginning of its id; without it the
newest run is meant. What spends or destroys something asks first, unless `--yes` is given. Ctrl-C ends no training.

| exit code | means |
|---|---|
| 0 | done; also: stopped by you, detached, kept |
| 1 | a bug in gptctl: the message names the file with the traceback |
| 2 | wrong input: recipe, inventory, arguments, a run that does not exist, a run driven by another gptctl |
| 3 | the provider refused or said nothing |
| 4 | the machine: unreachable, another host key, unfit, bytes that do not match |
| 5 | the training failed |
| 6 | a limit was reached |
| 7 | a machine may still be billing |
| 130 | Ctrl-C at a moment when nothing had to be left running |
"""


def top_help() -> str:
    """What `gptctl --help` prints."""
    return _help([]) + "\n"


def reference() -> str:
    """docs/cli.md."""
    command = typer.main.get_command(app)
    names = command.list_commands(command.make_context("gptctl", [], resilient_parsing=True))  # type: ignore[attr-defined]
    paths = [path for name in names for path in ([name], *_below(command, name))]
    pages = [f"## gptctl {' '.join(path)}\n\n```text\n{_help(path)}\n```\n" for path in paths]
    return "\n".join([INTRODUCTION, f"```text\n{_help([])}\n```\n", *pages])


def _below(command: Any, name: str) -> list[list[str]]:
    """The commands of a group."""
    context = command.make_context("gptctl", [], resilient_parsing=True)
    group = command.get_command(context, name)
    return [[name, each] for each in getattr(group, "commands", {})]


def _help(path: list[str]) -> str:
    # A page must not depend on the terminal it was made in, nor change the environment: tests run in this process too.
    command = typer.main.get_command(app)
    context = command.make_context("gptctl", [], resilient_parsing=True, terminal_width=WIDTH)
    for name in path:
        command = command.get_command(context, name)  # type: ignore[attr-defined]
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    return command.get_help(context).rstrip()


if __name__ == "__main__":
    HELP.write_text(top_help(), encoding="utf-8")
    REFERENCE.write_text(reference(), encoding="utf-8")
