"""The command line's own pages, generated from the app by `make docs`: `cli/help.txt` and `docs/reference/cli/*.md`.

A test compares every file with what this module generates.

Example::

    python -m orchestrator.cli.manual          # in a checkout: writes them all
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.app import app

WIDTH = 78
"""What Typer makes of a terminal of 80 columns."""
HELP = Path(__file__).with_name("help.txt")
REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli"

GROUPS = {
    "starting": ("Starting runs", ("init", "recipes", "plan", "run", "skill", "schema")),
    "driving": ("Driving runs", ("resume", "stop", "fetch", "release")),
    "sweeps": ("Many runs", ("sweep",)),
    "watching": ("Watching runs and money", ("status", "queue", "logs", "track", "cost", "notify", "ui")),
    "driver": ("A machine that drives your runs", ("driver",)),
    "history": ("Names and disk of runs", ("runs",)),
    "machines": ("Machines and hosts", ("hosts", "offers", "check", "ssh", "orphans")),
    "models": ("Models", ("sample", "chat", "attention", "export", "import", "import-recipe")),
    "results": ("Results", ("eval", "judge", "compare", "report")),
    "data": ("Data", ("data",)),
}
"""Page -> its title and the commands on it. Every command stands on one page."""

INTRODUCTION = """\
# Command line

| page | commands |
|---|---|
{rows}

stdout is the result, stderr the conversation. `--json` prints the result as JSON on every command that has one. RUN is
a run's id, its name or the first characters of its id; omit it for the newest run. A command that spends or destroys
something asks first, unless you give `--yes`. Ctrl-C never ends a training.

| exit code | means |
|---|---|
| 0 | done; also: stopped by you, detached, kept |
| 1 | a bug in gptctl: the message names the file with the traceback |
| 2 | wrong input: recipe, inventory, arguments, a run that does not exist, a run that another gptctl drives |
| 3 | the provider refused or did not answer |
| 4 | the machine: unreachable, a changed host key, unfit, bytes that do not match |
| 5 | the training failed |
| 6 | the run reached a limit |
| 7 | a machine may still be billing |
| 130 | Ctrl-C before anything was started that has to continue |

A command that fails with `--json` prints why on stdout, with the exit code and the next command:
`{{"error": {{"kind", "message", "exit_code", "next"}}}}`. `gptctl schema COMMAND` prints the JSON Schema of its result,
`gptctl schema failure` that of this object.

`--plain` (or `GPTCTL_PLAIN=1`) is for screen readers, with any command: one fact a line, no colour, nothing drawn or
redrawn. Without UTF-8 (`LANG=C`) bars and signs are ASCII.

[Troubleshooting](../troubleshooting.md) explains each code and message.
"""
MADE = "<!-- made from the program by `make docs`; do not edit -->\n\n"


def top_help() -> str:
    """What `gptctl --help` prints."""
    return _help([]) + "\n"


def pages() -> dict[str, str]:
    """File name in docs/reference/cli/ -> its text. Raises ValueError for a command on no page, or on two."""
    commands = [name for _, names in GROUPS.values() for name in names]
    if sorted(commands) != sorted(_commands()):
        raise ValueError(f"GROUPS and the app differ in {sorted(set(commands) ^ set(_commands()))}")
    rows = "\n".join(
        f"| [{title}]({page}.md) | " + ", ".join(f"[`{name}`]({page}.md#gptctl-{name})" for name in names) + " |"
        for page, (title, names) in GROUPS.items()
    )
    index = MADE + INTRODUCTION.format(rows=rows) + f"\n```text\n{_help([])}\n```\n"
    return {"index.md": index} | {f"{page}.md": _page(title, names) for page, (title, names) in GROUPS.items()}


def _page(title: str, names: tuple[str, ...]) -> str:
    paths = [path for name in names for path in ([name], *_below(name))]
    sections = [f"## gptctl {' '.join(path)}\n\n```text\n{_help(path)}\n```\n" for path in paths]
    return MADE + f"# {title}\n\n" + "\n".join(sections)


def _commands() -> list[str]:
    command = _command()
    names: list[str] = command.list_commands(command.make_context("gptctl", [], resilient_parsing=True))
    return names


def _below(name: str) -> Iterator[list[str]]:
    """The commands of a group."""
    command = _command()
    group = command.get_command(command.make_context("gptctl", [], resilient_parsing=True), name)
    yield from ([name, inner] for inner in getattr(group, "commands", {}))


@cache
def _command() -> Any:
    """The app as Click has it; making it takes longer than a page."""
    return typer.main.get_command(app)


def _help(path: list[str]) -> str:
    # A page must not depend on the terminal it was made in, nor change the environment: tests run in this process too.
    command = _command()
    context = command.make_context("gptctl", [], resilient_parsing=True, terminal_width=WIDTH)
    for name in path:
        command = command.get_command(context, name)
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    return str(command.get_help(context)).rstrip()


if __name__ == "__main__":
    HELP.write_text(top_help(), encoding="utf-8")
    for file_name, text in pages().items():
        (REFERENCE / file_name).write_text(text, encoding="utf-8")
