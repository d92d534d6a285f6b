"""The page on troubleshooting is true: every error under its exit code, every agent code, every message it quotes."""

from __future__ import annotations

import ast
import re
from typing import TypeGuard

import pytest

from orchestrator.agent.contract.names import CODES, Code
from orchestrator.core.errors import GptctlError
from tests.architecture.test_layers import error_classes, sources
from tests.support.files.repository import REPOSITORY

PAGE = (REPOSITORY / "docs/reference/troubleshooting.md").read_text(encoding="utf-8")
SECTIONS = {int(code): text for code, text in re.findall(r"^## Exit (\d).*?\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)}


@pytest.mark.parametrize("error", [each for each in error_classes() if each is not GptctlError])
def test_every_error_stands_under_its_exit_code(error: type[GptctlError]) -> None:
    assert f"- **{error.__name__}**: " in SECTIONS[error.exit_code]
    elsewhere = [code for code, text in SECTIONS.items() if f"**{error.__name__}**" in text]
    assert elsewhere == [error.exit_code]


def test_the_page_names_no_error_that_is_gone() -> None:
    assert set(re.findall(r"\*\*([A-Z]\w+)\*\*: ", PAGE)) <= {each.__name__ for each in error_classes()}


def test_every_code_of_the_agent_is_explained_and_no_other() -> None:
    explained = set(re.findall(r"`([a-z-]+)`", " ".join(re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", PAGE, re.M))))
    assert explained == CODES


def test_the_agent_refuses_with_codes_of_its_contract_only() -> None:
    for path, tree in sources("orchestrator/agent"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Refusal":
                assert not isinstance(node.args[0], ast.Constant), f"{path}: {ast.unparse(node)}"
    words = {node.attr for _, tree in sources("orchestrator/agent") for node in ast.walk(tree) if _is_code(node)}
    assert {getattr(Code, word) for word in words} == CODES, "a code that nothing uses"


def _is_code(node: ast.AST) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Code"


@pytest.mark.parametrize("phrase", re.findall(r"^\| `([^`]+)` (?:after `[^`]+` )?\|", SECTIONS[2], re.M))
def test_a_quoted_message_is_one_that_gptctl_says(phrase: str) -> None:
    assert any(phrase in (REPOSITORY / path).read_text(encoding="utf-8") for path, _ in sources("orchestrator"))
