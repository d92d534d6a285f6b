"""The help pages are true, and nothing heavy is loaded to print them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.cli import manual

HEAVY = {"fabric", "paramiko", "invoke", "boto3", "pydantic", "httpx", "torch", "numpy", "rich", "sqlite3"}
VERBS = ("init", "run", "plan", "status", "logs", "fetch", "stop", "resume", "release", "cost", "hosts", "check")
LOADED = "import sys; {}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
AFTER_MAIN = """
import sys
from orchestrator.__main__ import main
sys.argv = ["gptctl", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules in memory after `gptctl ARGUMENTS`."""
    done = subprocess.run([sys.executable, "-c", AFTER_MAIN, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED ")[2].split())


def test_the_first_page_is_what_the_app_prints() -> None:
    assert manual.HELP.read_text(encoding="utf-8") == manual.top_help(), "run: make docs"


def test_the_first_page_cuts_no_command_s_line() -> None:
    assert "..." not in manual.top_help().replace("[ARGS]...", "")


def test_the_reference_is_what_the_app_prints() -> None:
    written = {path.name: path.read_text(encoding="utf-8") for path in manual.REFERENCE.glob("*.md")}
    assert written == manual.pages(), "run: make docs"


def test_every_verb_has_a_page_and_every_option_a_help() -> None:
    reference = "\n".join(manual.pages().values())
    for verb in (*VERBS, "ssh", "sample"):
        assert f"## gptctl {verb}\n" in reference
    bare = [line for line in reference.splitlines() if line.startswith("  -") and len(line.split("  ")) < 3]
    assert [line for line in bare if len(line) < 24] == []


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    command = [sys.executable, "-c", LOADED.format("import orchestrator.cli.app")]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "typer" in loaded
    assert loaded & HEAVY == set()


def test_the_first_page_does_not_even_load_typer() -> None:
    assert loaded_by("--help") & (HEAVY | {"typer", "click"}) == set()
    assert loaded_by() & (HEAVY | {"typer", "click"}) == set()


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_a_verb_loads_nothing_heavy(verb: str) -> None:
    assert loaded_by(verb, "--help") & HEAVY == set()


def test_status_as_json_needs_neither_fabric_nor_pydantic_nor_rich(gptctl_home: object) -> None:
    assert loaded_by("status", "--json") & {"fabric", "paramiko", "pydantic", "rich", "torch", "numpy"} == set()
