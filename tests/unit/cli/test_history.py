"""`gptctl runs`: what goes is what the rules mean; what is needed, or nowhere else, stays; and what it cost stays."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.core.checkpoints.store_state import StoreState
from orchestrator.core.facts.origin import RESUMED, Origin
from orchestrator.core.facts.run_facts import RunFacts
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import Ledger, Rental, RunRecord
from orchestrator.ledger.run_lock import RunLock
from orchestrator.runs.housekeeping import Rules, disk_bytes, matching
from tests.support.machines.in_process import invoke

DAY_S = 86_400.0
WEIGHTS = 1000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs `old` (30 days), `failed`, `stored` and `new` on machines that are gone, each with one checkpoint here."""
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    with Ledger.open(tmp_path / "home", time.time) as ledger:
        for name, days, outcome in (
            ("old-1", 30, Outcome.FINISHED), ("failed-1", 3, Outcome.FAILED), ("stored-1", 2, Outcome.FINISHED),
            ("new-1", 1, Outcome.FINISHED),
        ):  # fmt: skip
            add(ledger, name, days, outcome)
        ledger.update_run("stored-1", facts={"store": StoreState("s3://b/p", "safe", None, 40)})
    yield tmp_path / "home"


def add(ledger: Ledger, name: str, days: float, outcome: Outcome | None) -> None:
    at = time.time() - days * DAY_S
    ledger.add_rental(Rental(f"m-{name}", "lambda", "box", "1xH100", at))
    record = RunRecord(name, "tiny", "box", "1xH100", at, rental_id=f"m-{name}")
    if outcome is not None:
        record = replace(record, state=State.ENDED, outcome=outcome, ended_at=at)
        ledger.update_rental(f"m-{name}", state="released")
    ledger.add_run(record)
    ledger.close_stage(ledger.open_stage(name, f"m-{name}", "follow", 3600.0))
    step = ledger.home / "runs" / name / "checkpoints" / "step-000040"
    step.mkdir(parents=True)
    (step / "model.safetensors").write_bytes(b"w" * WEIGHTS)
    (step / "MANIFEST.json").write_text(json.dumps({"files": {"model.safetensors": {"size_bytes": WEIGHTS}}}))
    (ledger.home / "runs" / name / "metrics.jsonl").write_text("{}\n")


def gptctl(*words: str) -> tuple[int, str]:
    done = invoke(*words)
    return done.exit_code, done.output


def here(home: Path) -> set[str]:
    return {folder.parent.name for folder in (home / "runs").glob("*/checkpoints")}


def ids(home: Path) -> set[str]:
    with Ledger.open(home, time.time) as ledger:
        return {run.id for run in ledger.runs()}


def test_the_list_says_what_each_run_takes_and_whether_it_is_elsewhere(home: Path) -> None:
    code, shown = gptctl("runs", "--json")
    assert code == 0
    found = json.loads(shown)
    assert [(row["id"], row["elsewhere"]) for row in found["runs"]] == [
        ("new-1", False), ("stored-1", True), ("failed-1", False), ("old-1", False),
    ]  # fmt: skip
    assert all(row["disk_bytes"] > row["checkpoint_bytes"] > WEIGHTS for row in found["runs"])
    assert 30 * DAY_S <= found["runs"][-1]["age_s"] < 30 * DAY_S + 600
    assert found["disk_bytes"]["runs"] == disk_bytes(home / "runs")
    assert "CHECKPOINTS" in gptctl("runs")[1] and gptctl("runs", "list")[0] == 0


def test_a_new_name_finds_the_run_and_a_taken_one_is_said(home: Path) -> None:
    assert gptctl("runs", "rename", "old-1", "baseline")[0] == 0
    code, said = gptctl("runs", "rename", "new-1", "baseline")
    assert code == 0 and "old-1 has that name too" in said
    assert gptctl("runs", "rename", "baseline", "")[0] == 0, "the newest of two: new-1"
    with Ledger.open(home, time.time) as ledger:
        assert (ledger.find_run("baseline").id, ledger.run("new-1").name) == ("old-1", None)
    assert gptctl("runs", "rename", "old-1", "two\nlines")[0] == 2


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (["--older-than", "0"], {"stored-1"}),
        (["--older-than", "0", "--only-copies"], {"old-1", "failed-1", "stored-1", "new-1"}),
        (["--older-than", "7", "--only-copies"], {"old-1"}),
        (["--outcome", "failed", "--only-copies"], {"failed-1"}),
        (["--except-newest", "2", "--only-copies"], {"old-1", "failed-1"}),
        (["--outcome", "finished", "--except-newest", "1", "--only-copies"], {"old-1", "stored-1"}),
        (["--outcome", "stopped", "--only-copies"], set()),
        (["--label", "no=such"], set()),
    ],
)
def test_prune_takes_the_checkpoints_that_every_rule_means(home: Path, words: list[str], gone: set[str]) -> None:
    everything = here(home)
    code, said = gptctl("runs", "prune", *words, "--yes")
    assert code == 0, said
    assert here(home) == everything - gone and ids(home) == everything
    assert all((home / "runs" / name / "metrics.jsonl").is_file() for name in everything)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no rule"), (["--outcome", "great"], "known are"), (["--label", "noequals"], "KEY=VALUE"),
        (["--older-than", "0", "--only-copies"], "--yes is missing"),
    ],
)  # fmt: skip
def test_prune_without_a_rule_or_an_answer_deletes_nothing(home: Path, words: list[str], says: str) -> None:
    before = here(home)
    code, said = gptctl("runs", "prune", *words)
    assert code == 2 and says in said
    assert here(home) == before


def test_forget_removes_all_but_the_bill(home: Path) -> None:
    before = json.loads(gptctl("cost", "--json")[1])["runs"]
    code, said = gptctl("runs", "forget", "old-1", "failed-1")
    assert code == 2 and "on this computer only" in said and len(ids(home)) == 4
    assert gptctl("runs", "forget", "stored-1", "--yes")[0] == 0
    assert gptctl("runs", "forget", "old-1", "failed-1", "--only-copies", "--yes")[0] == 0
    assert ids(home) == {"new-1"} and {folder.name for folder in (home / "runs").iterdir()} == {"new-1"}
    after = json.loads(gptctl("cost", "--json")[1])["runs"]
    assert [(run["id"], run["cost_usd"]) for run in after] == [(run["id"], run["cost_usd"]) for run in before]


def test_one_that_cannot_go_keeps_no_other_one_here(home: Path) -> None:
    """Another gptctl looks at it at this moment."""
    with RunLock.acquire(home, "stored-1"):
        code, said = gptctl("runs", "forget", "stored-1", "old-1", "--only-copies", "--yes")
    assert code == 2 and "stored-1 is driven by" in said
    assert "stored-1" in ids(home) and "old-1" not in ids(home)


@pytest.mark.parametrize("why", ["unfinished", "held", "needed"])
def test_what_is_needed_stays_whatever_is_asked(home: Path, why: str) -> None:
    with Ledger.open(home, time.time) as ledger:
        if why == "unfinished":
            add(ledger, "busy-1", 0, None)
        elif why == "held":
            add(ledger, "busy-1", 0, Outcome.FINISHED)
            ledger.update_rental("m-busy-1", state="open")
        else:
            add(ledger, "busy-1", 0, Outcome.FINISHED)
            facts = RunFacts(origin=Origin(RESUMED, "there", run="busy-1"))
            ledger.add_run(RunRecord("next-1", "tiny", "box", "1xH100", time.time(), facts=facts))
    code, said = gptctl("runs", "forget", "busy-1", "--only-copies", "--yes")
    assert code == 2, said
    assert gptctl("runs", "prune", "--older-than", "0", "--forget", "--only-copies", "--yes")[0] == 0
    assert "busy-1" in here(home) and "busy-1" in ids(home) and here(home) == {"busy-1"}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ended=st.lists(st.tuples(st.floats(0, 100), st.sampled_from(list(Outcome))), max_size=12),
    days=st.none() | st.floats(0, 100), outcomes=st.frozensets(st.sampled_from(list(Outcome))),
    newest=st.integers(0, 12),
)  # fmt: skip
def test_more_rules_mean_fewer_runs(
    ended: list[tuple[float, Outcome]], days: float | None, outcomes: frozenset[Outcome], newest: int
) -> None:
    now = 1000 * DAY_S
    runs = [
        RunRecord(
            str(number), "tiny", "box", "1x3090", 0, state=State.ENDED, outcome=outcome, ended_at=now - age * DAY_S
        )
        for number, (age, outcome) in enumerate(ended)
    ]
    older_than_s = None if days is None else days * DAY_S
    found = matching(runs, Rules(older_than_s, outcomes, newest), now)
    each = (Rules(older_than_s), Rules(outcomes=outcomes), Rules(except_newest=newest))
    alone = [{run.id for run in matching(runs, rules, now)} for rules in each]
    assert {run.id for run in found} == set.intersection(*alone)


def test_status_shows_the_age_and_with_running_only_what_has_not_ended(home: Path) -> None:
    with Ledger.open(home, time.time) as ledger:
        ledger.add_run(RunRecord("busy-1", "tiny", "box", "1xH100", time.time() - 2 * DAY_S))
    rows = {row["id"]: row for row in json.loads(gptctl("status", "--running", "--json")[1])["runs"]}
    assert rows.keys() == {"busy-1"} and 2 * DAY_S <= rows["busy-1"]["age_s"] < 2 * DAY_S + 600
    assert gptctl("status", "--running", "--all")[0] == 2
