"""What cannot be a sweep is refused with the words that mend it, before anything is written or bought."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.ledger import Ledger, sweeps
from tests.support.machines.in_process import invoke

INVENTORY = """
[hosts.box]
provider = "ssh"
machine = "1x3090"
address = "192.0.2.1"
price_per_hour_usd = 0.5
"""
ROWS = [
    pytest.param('variants = ["nowhere", "neither"]', 2, ["nowhere", "neither"], id="every arm invalid"),
    pytest.param('[set]\n"train.no_such_key" = [1, 2]', 2, ["no_such_key=1", "no_such_key=2"], id="an unknown key"),
    pytest.param(
        '[set]\n"model.n_embd" = [128, 65536]', 2, ["arm n_embd=65536: "], id="one arm impossible on the machine"
    ),
    pytest.param('[set]\n"train.learning_rate" = [1e-3, 1e-3]', 2, ["train the same"], id="duplicate arms"),
    pytest.param('variants = ["quickstart"]', 2, ["train the same"], id="the baseline as a variant"),
    pytest.param("seeds = [1, 1]", 2, ["seeds"], id="one seed twice"),
    pytest.param('[set]\n"train.learning_rate" = []', 2, ["no value"], id="an empty axis"),
    pytest.param("[limits]\nmax_cost_usd = 0.000001", 6, ["first arm"], id="a ceiling below the first arm"),
    pytest.param("rentals = 2", 2, ["one machine"], id="two machines of one"),
    pytest.param(
        "rentals = 3\nseeds = 2\n[stop]\nstep = 9\nmargin = 0.1", 2, ["[stop] keeps the arms of one seed"],
        id="arms that are compared on more machines than seeds",
    ),
    pytest.param('order = "random"', 2, ["order"], id="an unknown order"),
]  # fmt: skip


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(("text", "code", "says"), ROWS)
def test_a_sweep_that_cannot_be_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, text: str, code: int, says: list[str]
) -> None:
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    (tmp_path / "s.toml").write_text(f'name = "s"\nbaseline = "quickstart"\n{text}\n')
    done = invoke("sweep", verb, "s.toml", "--host", "box", *(["--yes"] if verb == "run" else []))
    assert (done.exit_code, [word for word in says if word not in done.output]) == (code, []), done.output
    with Ledger.open(tmp_path / "home", time.time) as ledger:
        assert ledger.runs() == [] and ledger.rentals() == [] and sweeps.listed(ledger.rows) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('checkpoint_store = "s3://bucket/models"', "no answer to PUT /bucket/models"),
        ('checkpoint_store = "ftp://box/models"', "machines cannot write there"),
    ],
)
def test_a_store_that_does_not_answer_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path / "home"))
    for name, value in {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_REGION": "x", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inventory.toml").write_text(INVENTORY + line)
    (tmp_path / "s.toml").write_text('name = "s"\nbaseline = "quickstart"\nseeds = 2\n')
    done = invoke("sweep", "run", "s.toml", "--host", "box", "--yes")
    assert done.exit_code in (2, 3) and says in done.output, done.output
    with Ledger.open(tmp_path / "home", time.time) as ledger:
        assert ledger.runs() == [] and ledger.rentals() == [] and sweeps.listed(ledger.rows) == []
