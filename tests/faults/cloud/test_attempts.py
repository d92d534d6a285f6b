"""One run on several machines, since its provider takes them away: it finishes, loses at most an interval each time,
and never has two machines. The oracle is the cloud's own books."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import Rehearsal
from tests.stories.conftest import losses, wait_until

pytestmark = pytest.mark.faults
EVERY, ONE_RANK = 300, "1xH100-simulated"


def report(place: Rehearsal) -> dict[str, Any]:
    return dict(json.loads((place.home / "runs" / place.run_id() / "report.json").read_text()))


def never_two_at_once(place: Rehearsal) -> bool:
    """By the books: each machine was launched after the one before it had ended."""
    lines = map(json.loads, (place.cloud.state / "books.jsonl").read_text().splitlines())
    told = [event["event"] for event in lines if event["event"] in ("launched", "ended")]
    return all(one != other for one, other in itertools.pairwise(told))


def test_three_preemptions_in_one_run(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F40 preempted three times in one run", steps=1500, every=EVERY, most_usd=3, machine=ONE_RANK)
    run = place.run("--spot", inject="preempt@550,preempt@850,preempt@1150", deadline_s=1400)
    assert run.returncode == 0, run.stderr
    assert place.cloud.fired() == ["preempt"] * 3 and never_two_at_once(place)
    said = report(place)["interruptions"]
    assert (said["interruptions"], said["machines"]) == (3, 4)
    assert 0 < said["lost_steps"] <= 3 * EVERY
    steps = [step for step, _ in losses(place.home / "runs" / place.run_id())]
    assert steps == sorted(set(steps)) and steps[-1] == 1500
    cents = sum(row["cost_cents"] for row in place.cloud.books()["instances"] if not row["foreign"])
    assert cents <= 300 and said["saved_usd"] is not None
    place.check()


def test_five_preemptions_in_a_row(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse(
        "F40 preempted five times in a row, before a checkpoint", steps=4000, every=4000, most_usd=3, machine=ONE_RANK
    )
    run = place.run("--spot", inject="preempt@5*5")
    assert run.returncode == 3, run.stderr
    assert "3 machines in a row were taken away before a new checkpoint was safe" in run.stderr
    assert place.cloud.fired() == ["preempt"] * 3 and never_two_at_once(place)
    place.check(outcome="preempted")


def test_no_capacity_after_a_preemption(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse(
        "F40 preempted, and then nothing is for sale", steps=4000, every=EVERY, most_usd=3, machine=ONE_RANK
    )
    process = place.begin("--spot")
    wait_until(lambda: place.trained(EVERY + 50) and place.newest()["safe_step"], 120)
    place.cloud.inject("preempt@0,sold-out*forever,no-capacity*forever")
    assert place.wait(process) == 3, place.words()
    assert f"--resume-from {place.run_id()}" in place.words()
    place.check(outcome="preempted")


def test_a_notice_during_a_save(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse(
        "F40 spot notice during a save, and it goes on", steps=2000, every=EVERY, most_usd=3, machine=ONE_RANK
    )
    run = place.run("--spot", inject=f"notice@{EVERY}")
    assert run.returncode == 0, run.stderr
    said = report(place)["interruptions"]
    assert (said["interruptions"], said["machines"], said["lost_steps"]) == (1, 2, 0)
    assert never_two_at_once(place)
    place.check()


SWEEP = """
name = "pair"
baseline = "tiny.toml"
seeds = 2
[limits]
max_cost_usd = 3
"""


def test_the_machine_of_a_sweep_is_taken_away(rehearse: Callable[..., Rehearsal]) -> None:
    """The arm that trained goes on from its checkpoint, the one that waited begins, both on the next machine."""
    place = rehearse(
        "F41 a sweep on the spot market, preempted in its first arm", steps=900, every=100, most_usd=3, machine=ONE_RANK
    )
    inventory = place.folder / "inventory.toml"
    inventory.write_text(inventory.read_text().replace('guard = "watcher"', 'guard = "watcher"\nspot = true'))
    (place.folder / "pair.toml").write_text(SWEEP)
    place.cloud.inject("preempt@350")
    swept = place.gptctl("sweep", "run", "pair.toml", "--host", "cloud", "--yes", "--json")
    assert swept.returncode == 0, swept.stderr
    assert place.cloud.fired() == ["preempt"] and never_two_at_once(place)
    found = json.loads(swept.stdout)
    assert [arm["state"] for arm in found["arms"]] == ["finished"] * 2 and len(place.cloud.books()["instances"]) == 2
    first, second = (dict(losses(place.home / "runs" / arm["run"])) for arm in found["arms"])
    assert max(first) == max(second) == 900 and "going on from step 300" in swept.stderr
    assert 0 < found["spent_usd"] <= 3
    place.check()
