"""`gptctl status --json`: the keys scripts rely on, and how a row reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.inference.trainer_program import failed
from orchestrator.cli.runs import status
from orchestrator.cli.runs.status_rows import COLUMNS, cells, rental_row, run_row
from orchestrator.core.errors import CommandFailed, GptctlError, UserError
from orchestrator.core.facts.run_facts import EngineFacts, RunFacts
from orchestrator.core.money.cost import spent
from orchestrator.core.states import Outcome, Seen, State
from orchestrator.ledger.records import Rental, RunRecord, StageInterval
from orchestrator.report.evaluations import from_line
from tests.support.machines.lying_account import of_this_thread

RUN_KEYS = {
    "id", "name", "recipe", "host", "machine", "rental", "state", "outcome", "stage", "step", "total_steps", "loss",
    "val_loss", "tokens_per_second", "mfu", "eta_s", "cost_usd", "price_per_hour_usd", "seen", "seen_s", "seen_via",
    "safe_step", "store", "guard", "evaluations",
}  # fmt: skip
RENTAL_KEYS = {"id", "provider", "instance_id", "machine", "price_per_hour_usd", "cost_usd", "runs"}

RENTAL = Rental("box-1", "ssh", "box", "1x3090", created_at=0.0, price_per_hour_usd=3.6)
RUN = RunRecord(
    "tiny-1120-abcdef", "tiny", "box", "1x3090", created_at=0.0, rental_id="box-1", state=State.TRAINING,
    stage="follow", step=50, total_steps=200, loss=3.25, tokens_per_second=25_900.0, eta_s=200.0,
    seen=Seen.LIVE, seen_at=96.0, seen_via="ssh",
)  # fmt: skip
INTERVALS = [
    StageInterval(RUN.id, "box-1", "acquire", 0.0, 10.0, 10.0, 3.6),
    StageInterval(RUN.id, "box-1", "follow", 10.0, None, 100.0, 3.6),
]


def test_the_documented_keys_are_all_there() -> None:
    row = run_row(RUN, RENTAL, INTERVALS, now=100.0)
    assert set(row) >= RUN_KEYS
    assert set(row["guard"]) == {"kind", "armed", "ends_at"}
    assert (row["seen"], row["seen_s"], row["seen_via"], row["cost_usd"]) == ("live", 4.0, "ssh", 0.1)
    rental = rental_row(RENTAL, [RUN], {RUN.id: INTERVALS})
    assert set(rental) >= RENTAL_KEYS
    assert (rental["runs"], rental["cost_usd"]) == ([RUN.id], 0.1)


def test_what_was_measured_is_in_the_row_and_a_loss_that_is_no_number_is_null() -> None:
    lines = [
        {"kind": "slice", "slice": [0, 64], "loss": 3.5, "perplexity": 33.1, "tokens": 64},
        {"kind": "slice", "slice": [64, 64], "loss": math.nan, "perplexity": math.nan, "tokens": 64},
        {"kind": "checkpoint", "step": 50},
    ]
    found = [each for line in lines if (each := from_line(RUN.id, 50, line, 1.0)) is not None]
    row = run_row(RUN, RENTAL, INTERVALS, 100.0, found)
    assert [(each["step"], each["name"], each["loss"], each["perplexity"]) for each in row["evaluations"]] == [
        (50, "0+64", 3.5, 33.1),
        (50, "64+64", None, None),
    ]
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("evidence", "kind", "message"),
    [
        ("python ended with code 1: evaluate: q.jsonl: no questions found", UserError, "q.jsonl: no questions found"),
        ("usage\npython -m trainer.evaluate: error: bad choice: 'x'", UserError, "bad choice: 'x'"),
        ("Traceback\nModuleNotFoundError: no torch", CommandFailed, "evaluate: ModuleNotFoundError: no torch"),
        ("", CommandFailed, "evaluate: no reason given"),
    ],
)
def test_what_a_program_says_of_its_input_is_the_users_and_a_crash_is_not(
    evidence: str, kind: type[GptctlError], message: str
) -> None:
    error = failed("evaluate", evidence)
    assert (type(error), error.message) == (kind, message)
    assert ("gptctl check" in error.hint) == (kind is CommandFailed)


def test_a_run_without_a_rental_has_nulls() -> None:
    row = run_row(replace(RUN, rental_id=None, seen=None, seen_at=None), None, [], now=100.0)
    assert (row["price_per_hour_usd"], row["seen"], row["seen_s"], row["cost_usd"]) == (None, None, None, 0)
    assert row["guard"] == {"kind": "none", "armed": False, "ends_at": None}


def shown(run: RunRecord) -> dict[str, str]:
    return dict(
        zip((column.name for column in COLUMNS), cells(run_row(run, RENTAL, INTERVALS, now=100.0)), strict=True)
    )


def test_a_training_run_reads_well() -> None:
    row = shown(RUN)
    assert [row[name] for name in ("STAGE", "STEP", "LOSS", "TOK/S", "ETA", "COST", "$/H", "SEEN")] == [
        "training", "50/200", "3.2500", "25.9k", "3m 20s", "$0.10", "$3.60", "seen 4s ago via ssh",
    ]  # fmt: skip


def test_an_unreachable_machine_is_unknown_and_never_dead() -> None:
    assert shown(replace(RUN, seen=Seen.UNKNOWN, seen_at=40.0))["SEEN"] == "unknown, seen 1m 00s ago via ssh"
    assert shown(replace(RUN, seen=Seen.UNKNOWN, seen_at=99.0))["SEEN"] == "seen 1s ago via ssh", "by its follower"
    assert shown(replace(RUN, seen=Seen.UNKNOWN, seen_at=None))["SEEN"] == "unknown"
    assert shown(replace(RUN, seen=None, seen_at=None))["SEEN"] == "not seen yet"


def test_an_ended_run_shows_its_outcome_and_no_price_per_hour() -> None:
    row = shown(replace(RUN, state=State.ENDED, outcome=Outcome.FAILED))
    assert (row["STAGE"], row["$/H"], row["SEEN"], row["ETA"]) == ("failed", "-", "-", "-")


def test_an_open_stage_counts_until_its_driver_was_last_heard_of() -> None:
    assert spent(INTERVALS) == 0.1
    assert spent([StageInterval("r", None, "follow", 10.0, 5.0, 5.0, 3.6)]) == 0


@pytest.mark.parametrize("plain", [True, False])
def test_a_screen_reader_hears_once_that_there_is_no_run(
    plain: bool, gptctl_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter(range(3))

    def sleep(_: float) -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", of_this_thread(sleep))
    if plain:
        monkeypatch.setenv(status.PLAIN, "1")
    assert status.status(None, watch=True, everything=False, as_json=False) == 0
    assert capsys.readouterr().err.count("no runs yet") == (1 if plain else 4)


@pytest.mark.parametrize(
    ("reason", "starts_at", "words"),
    [
        ("Resources", 100.0 + 7800, "pending (Resources, starts in 2h 10m)"),
        ("Resources", 90.0, "pending (Resources)"),
        ("JobHeldUser: it is held; `scontrol release 17` lets it go", None, "pending (JobHeldUser)"),
        ("", 130.0, "pending (starts in 30s)"),
        ("", None, "pending"),
    ],
)
def test_a_job_that_waits_says_why_and_for_how_long(reason: str, starts_at: float | None, words: str) -> None:
    engine = EngineFacts(("17",), phase="waiting", state="PENDING", reason=reason, starts_at=starts_at)
    row = run_row(replace(RUN, facts=RunFacts(engine=engine)), RENTAL, INTERVALS, now=100.0)
    assert words in cells(row)
