"""Of a path on a disk, what is shared shows the last part alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.models.export import Wish, write_companions
from orchestrator.core.events import Event
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.core.states import Outcome
from orchestrator.ledger import Ledger
from orchestrator.report.comparison.comparison import Compared, compare
from orchestrator.report.comparison.page import compare_charts, compare_page
from orchestrator.report.data_source import private_places, without_folders
from orchestrator.report.metrics import read_training
from orchestrator.report.summary import Records, write_report
from tests.unit.report.test_card import META
from tests.unit.report.test_report import STAGES, a_mirror, a_run


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("/home/ann/thesis/corpus.txt", "corpus.txt"),
        ('"source": "/data/books", "n": 1', '"source": "books", "n": 1'),
        ("gptctl run '/x y/recipe.toml' --host a", "gptctl run 'recipe.toml' --host a"),
        ('cannot read "~/My Thesis/a b.txt": it\'s gone', 'cannot read "a b.txt": it\'s gone'),
        ("'/' and '/x' and 'a / b'", "'/' and '/x' and 'a / b'"),
        ("~/.gptctl/runs/a/train.log: line 3", "train.log: line 3"),
        ("https://x.org/a/b.txt and s3://bucket/a/b", "https://x.org/a/b.txt and s3://bucket/a/b"),
        ("2.5 GB/s, 3/4 of it, $1.29/h", "2.5 GB/s, 3/4 of it, $1.29/h"),
    ],
)
def test_folders_go_and_addresses_stay(text: str, shared: str) -> None:
    assert without_folders(text) == shared


PLANTED = "S3cret Folder"
"""In every path of this computer, with a blank, beside words that no page may have."""


def shared_files(home: Path, data: str) -> Mapping[str, str]:
    """Every page that is made to be shared, of a run whose texts name this computer's folders everywhere."""
    (home / "runs").mkdir(parents=True)
    mirror = a_mirror(home / "runs" / "base-1120-k3f9qa")
    texts = (
        f"data: {data}: 3 documents, prepared in {home}/cache/tokens-1",
        f"cannot read '{data}'", f"{Path.home()}/.ssh/config was read", f"the log: {mirror}/train.log",
    )  # fmt: skip
    (mirror / "train.log").write_text("".join(f"{text}\n" for text in texts))
    run = a_run(cause=f"cannot read {data}", name="base")
    recipe = {**run.recipe_data, "data": {**run.recipe_data["data"], "source": data}}
    recipe["model"] = {**recipe["model"], "init_from": f"{Path.home()}/models/gpt two"}
    run = replace(run, recipe_data=recipe, created_at=time.time())
    checkpoint = mirror / "checkpoints" / "step-000100"
    (checkpoint / "meta.json").write_text(json.dumps(META))
    cost = run_cost(STAGES, machine=machine_type(run.machine), tokens=100)
    with Ledger.open(home, time.time) as ledger:
        ledger.add_run(run)
        to = home.parent / "export"
        to.mkdir()
        write_companions(ledger, run, checkpoint, Wish(), to)
    events = [Event("said", 1.0, "sync", text) for text in texts]
    write_report(run, STAGES, cost, mirror, Records(events=events))
    other = replace(run, id="other", outcome=Outcome.FINISHED, recipe_data={**recipe, "data": {"source": "/x/b.bin"}})
    runs = [Compared(each, read_training(mirror)) for each in (run, other)]
    page = compare_page(compare(runs, run.id), compare_charts(runs), "Two runs")
    files = {path.name: path.read_text(errors="replace") for path in to.iterdir() if path.suffix != ".png"}
    return {**files, **{name: (mirror / name).read_text() for name in ("report.md", "report.html")}, "compare": page}


def test_nothing_that_is_shared_names_a_folder_of_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / PLANTED / "ann"))
    home = tmp_path / PLANTED / "my gptctl"
    found = shared_files(home, str(tmp_path / PLANTED / "My Thesis" / "corpus one.txt"))
    assert {"README.md", "recipe.toml", "report.md", "report.html", "compare"} <= set(found)
    for name, text in found.items():
        for word in (PLANTED, "S3cret", str(tmp_path), "My Thesis", "my gptctl"):
            assert word not in text, f"{name} has {word}: ...{text[max(0, text.index(word) - 80) :][:200]}"
    assert "corpus one.txt" in found["report.html"] and "corpus one.txt" in found["compare"]


def test_of_two_places_the_longer_one_names_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    places = private_places({"data": {"source": "~/a b.txt"}}, Path("/home/ann/.gptctl"))
    assert list(places) == ["/home/ann/.gptctl", "/home/ann/a b.txt", "/home/ann", "~/a b.txt"]
    monkeypatch.setenv("HOME", "/")
    assert private_places({}, None) == {}
