"""Which token files here are those of a run: never by a path of another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.models.data_here import data_here
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.datasets import local_dataset
from orchestrator.core.facts.run_facts import DataOnMachine, DatasetFacts, RunFacts, Synced
from tests.support.files.recipes import write_small, write_tokens

FAR = ("/root/.gptctl/data/1a2b/val.bin",)


class Run:
    """What of a run record counts."""

    def __init__(self, recipe: Path, provider: str, source: str, files: tuple[str, ...], digest: str = "") -> None:
        self.host_data = {"provider": provider}
        self.recipe_data: dict[str, Any] = load_recipe(str(recipe)).resolved()
        self.recipe_data["data"]["source"] = source
        data = DataOnMachine(("/root/train.bin",), files)
        self.facts = RunFacts(synced=Synced("/src", data), dataset=DatasetFacts(1, 1, digest, None))


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, str]:
    """A dataset of two files, and its digest."""
    write_small(tmp_path, steps=2, every=2)
    for name in ("train.bin", "val.bin"):
        write_tokens(tmp_path / "corpus" / name, 5_000)
    files = [(name, tmp_path / "corpus" / name) for name in ("train.bin", "val.bin")]
    return tmp_path / "corpus", local_dataset.digest(files, {})


def here(run: Any) -> list[Path] | None:
    return data_here(run)


def test_what_was_sent_from_here_is_used(corpus: tuple[Path, str]) -> None:
    folder, digest = corpus
    assert here(Run(folder.parent / "tiny.toml", "ssh", str(folder), FAR, digest)) == [folder / "val.bin"]


def test_a_file_that_changed_is_not_taken(corpus: tuple[Path, str]) -> None:
    folder, digest = corpus
    write_tokens(folder / "val.bin", 6_000)
    assert here(Run(folder.parent / "tiny.toml", "ssh", str(folder), FAR, digest)) is None


def test_a_path_of_another_machine_is_never_read_here(corpus: tuple[Path, str]) -> None:
    folder, _ = corpus
    recipe = folder.parent / "tiny.toml"
    assert here(Run(recipe, "ssh", "hf://owner/name", (str(folder / "val.bin"),))) is None
    assert here(Run(recipe, "ssh", "/root/secret/data", ("/root/secret/val.bin",))) is None


def test_the_files_of_this_machine_are_read_where_they_are(corpus: tuple[Path, str]) -> None:
    folder, _ = corpus
    recipe = folder.parent / "tiny.toml"
    assert here(Run(recipe, "local", str(folder), (str(folder / "val.bin"),))) == [folder / "val.bin"]
    assert here(Run(recipe, "local", str(folder), (str(folder / "gone.bin"),))) is None
