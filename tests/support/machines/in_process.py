"""`gptctl` in the test's own process, for what prints and starts nothing.

done = invoke("runs", "--json")
done.exit_code, done.output
"""

from __future__ import annotations

from functools import cache
from unittest import mock

import typer
from typer.testing import CliRunner, Result

from orchestrator.cli.app import app


@cache
def commands() -> typer.core.TyperGroup:
    """All commands. Typer evaluates their annotations each time, which takes a sixth of a second."""
    found = typer.main.get_command(app)
    assert isinstance(found, typer.core.TyperGroup)
    return found


def invoke(*words: str) -> Result:
    """How the command ended, and what it said."""
    with mock.patch("typer.testing._get_command", lambda _: commands()):
        return CliRunner().invoke(app, list(words))
