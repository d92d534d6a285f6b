"""What README and CONTRIBUTING say is there: every link leads somewhere, every command line is one."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from orchestrator.cli.app import app
from tests.support.files.repository import REPOSITORY

DOCS = [str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", *DOCS)
LONGEST_PAGE_LINES = 200


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", (REPOSITORY / page).read_text(encoding="utf-8"))
    folder = (REPOSITORY / page).parent
    assert [target for target in targets if "://" not in target and not (folder / target).exists()] == []


@pytest.mark.parametrize("page", DOCS)
def test_no_page_is_a_wall_and_every_one_is_in_the_navigation(page: str) -> None:
    assert len((REPOSITORY / page).read_text(encoding="utf-8").splitlines()) <= LONGEST_PAGE_LINES
    navigation = "decisions/index.md" if page.startswith("docs/decisions/") else page.removeprefix("docs/")
    assert f" {navigation}\n" in (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_that_gptctl_names_is_there() -> None:
    named = set()
    for folder in ("orchestrator", "trainer", "recipes"):
        for path in (path for path in (REPOSITORY / folder).rglob("*") if path.suffix in {".py", ".toml", ".html"}):
            named |= set(re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")))
    assert len(named) > 5
    assert [page for page in sorted(named) if not (REPOSITORY / page).exists()] == []


def commands() -> list[list[str]]:
    """The words of every `gptctl ...` that README shows, in blocks and in the text."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    in_blocks = re.findall(r"^gptctl [^#\n]+", "".join(blocks), re.MULTILINE)
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
