"""What README and CONTRIBUTING say is there: every link leads somewhere, every command line is one."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from orchestrator.cli.app import app
from tests.support.files.repository import REPOSITORY

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (REPOSITORY / page).read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (REPOSITORY / target).exists()]
    assert missing == []


def commands() -> list[list[str]]:
    """The words of every `gptctl ...` that README shows, in blocks and in the text."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    in_blocks = re.findall(r"^gptctl [^#\n]+", text, re.MULTILINE)
    in_text = re.findall(r"`(gptctl [^`\n]+)`", text)
    return [shlex.split(line)[1:] for line in (*in_blocks, *in_text)]


def test_readme_shows_commands() -> None:
    assert len(commands()) > 10


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_line_is_one(words: list[str]) -> None:
    verb = typer.main.get_command(app)
    for word in words:
        if not hasattr(verb, "get_command"):
            break  # a group's next word is a command, a command's is an argument
        verb = verb.get_command(verb.make_context("gptctl", [], resilient_parsing=True), word)
        assert verb is not None, f"no verb {word}"
    known = {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words[1:] if word.startswith("-")} <= known | {"--help"}


def test_the_tree_in_readme_is_the_tree() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    tree = text.partition("```text\norchestrator/")[2].partition("```")[0]
    named = [line.split()[0] for line in tree.splitlines() if line.startswith("  ") and line.split()[0][0].isalpha()]
    assert named and [name for name in named if not (REPOSITORY / "orchestrator" / name).exists()] == []
    top = [line.split()[0] for line in tree.splitlines() if line and line[0].isalpha()]
    assert top and [name for name in top if not (REPOSITORY / name).exists()] == []
