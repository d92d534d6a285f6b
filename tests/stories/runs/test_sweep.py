"""A sweep with the laptop away: every arm trains once, the machine ends itself, and its runs share one bill. The oracle
is the cloud's own books."""

from __future__ import annotations

import itertools
import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stories.conftest import losses, wait_until
from tests.stories.stores.test_url_store import SETTINGS, Place
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.clouds.s3_server import S3Server

SWEEP = """
name = "small"
baseline = "kept.toml"
seeds = 2
[set]
"train.learning_rate" = [1e-3, 2e-3]
[limits]
max_cost_usd = 1000
"""
GAP_S = 60.0
LEASE_S = 600.0
"""What a loaded machine takes from a job's start to its first heartbeat is far below it."""


@pytest.fixture
def place(tmp_path: Path, s3: S3Server) -> Iterator[Place]:
    with RehearsalCloud(tmp_path / "cloud", warm=True) as cloud:
        yield Place(tmp_path, cloud, s3.bucket())


def rows(place: Place) -> list[dict[str, Any]]:
    with sqlite3.connect(place.home / "ledger.db") as ledger:
        ledger.row_factory = sqlite3.Row
        found = [dict(row) for row in ledger.execute("SELECT * FROM runs ORDER BY rowid")]
    return [{**row, "options": json.loads(row["options"])} for row in found]


@pytest.mark.nightly
def test_three_arms_and_two_seeds_end_without_the_laptop_under_one_bill(place: Place, tiny: Callable[..., str]) -> None:
    (place.folder / "kept.toml").write_text(f'extends = "{tiny(120)}"\nname = "kept"\n{SETTINGS}')
    (place.folder / "small.toml").write_text(SWEEP)
    process = place.begin("sweep", "run", "small.toml", "--host", "box", "--yes", lease_s=LEASE_S)

    def all_are_queued() -> bool:
        known = rows(place) if (place.home / "ledger.db").exists() else []
        return len(known) == 6 and all(row["state"] in ("training", "ending", "ended") for row in known)

    wait_until(lambda: process.poll() is not None or all_are_queued(), 480)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not place.cloud.books()["alive"], 480)
    code, out, err = place.gptctl("sweep", "resume", "small", "--json")
    assert code == 0, err
    swept = json.loads(out)
    assert [arm["state"] for arm in swept["arms"]] == ["finished"] * 6
    assert {machine["state"] for machine in swept["machines"]} == {"released"}
    assert len(place.cloud.books()["instances"]) == 1
    exits = sorted((row["options"]["exit"] for row in rows(place)), key=lambda each: each["started_at"])
    gaps = [later["started_at"] - sooner["ended_at"] for sooner, later in itertools.pairwise(exits)]
    print(f"\nseconds between arms: {', '.join(f'{gap:.1f}' for gap in gaps)}")
    assert all(0 <= gap < GAP_S for gap in gaps)
    cost = json.loads(place.gptctl("cost", "--json")[1])["runs"]
    bill = rental_bill(place)
    assert sum(run["cost_usd"] for run in cost) == pytest.approx(bill, abs=1e-6) and bill > 0
    assert_like_the_books(place, bill)
    assert all(run["cost_usd"] > 0 for run in cost)
    compared = json.loads(place.gptctl("sweep", "compare", "small", "--json")[1])
    assert len(compared["runs"]) == 6


CEILING_USD = 1.7
"""Of two machines at $4.29/h: twelve minutes each, some of which are kept free to save and to fetch."""
TWO = """
name = "two"
baseline = "kept.toml"
seeds = {seeds}
rentals = 2
[set]
"train.learning_rate" = [1e-3]
[limits]
max_cost_usd = {ceiling_usd}
"""


def swept(place: Place, name: str) -> dict[str, Any]:
    """How the sweep stands, once everything of it has ended."""
    code, out, err = place.gptctl("sweep", "status", name, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def bills(place: Place) -> list[float]:
    with sqlite3.connect(place.home / "ledger.db") as ledger:
        rows = ledger.execute("SELECT data FROM rentals").fetchall()
    return [float(json.loads(data)["bill"]["cost_usd"]) for (data,) in rows]


@pytest.mark.nightly
def test_two_machines_have_the_results_of_one_under_one_ceiling(place: Place, tiny: Callable[..., str]) -> None:
    (place.folder / "kept.toml").write_text(f'extends = "{tiny(120)}"\nname = "kept"\n{SETTINGS}')
    (place.folder / "two.toml").write_text(TWO.format(seeds=2, ceiling_usd=1000))
    process = place.begin("sweep", "run", "two.toml", "--host", "box", "--yes", lease_s=LEASE_S)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    found = swept(place, "two")
    assert [arm["state"] for arm in found["arms"]] == ["finished"] * 4
    assert sum(machine["ceiling_usd"] for machine in found["machines"]) == pytest.approx(1000)
    assert {machine["state"] for machine in found["machines"]} == {"released"}
    assert len(place.cloud.books()["instances"]) == 2 and not place.cloud.books()["alive"]
    assert {arm["rental"] for arm in found["arms"]} == {machine["id"] for machine in found["machines"]}
    assert found["spent_usd"] == pytest.approx(sum(bills(place)), abs=1e-6) and found["spent_usd"] > 0
    assert_like_the_books(place, found["spent_usd"])
    code, _, err = place.gptctl("run", "kept.toml", "--host", "local", "--yes", "--json")
    assert code == 0, err
    alone = losses(place.home / "runs" / place.run())
    assert losses(place.home / "runs" / found["arms"][0]["run"]) == alone, "the same arm alone, elsewhere"


@pytest.mark.nightly
def test_the_ceiling_falls_in_the_middle_of_two_machines(place: Place, tiny: Callable[..., str]) -> None:
    (place.folder / "kept.toml").write_text(f'extends = "{tiny(40_000)}"\nname = "kept"\n{SETTINGS}')
    (place.folder / "two.toml").write_text(TWO.format(seeds=3, ceiling_usd=CEILING_USD))
    process = place.begin("sweep", "run", "two.toml", "--host", "box", "--yes", lease_s=LEASE_S)
    _, err = process.communicate(timeout=1500)
    assert process.returncode == 6, err
    found = swept(place, "two")
    states = [arm["state"] for arm in found["arms"]]
    print(f"\n{states}; ${found['spent_usd']:.2f} of ${CEILING_USD}")
    assert_like_the_books(place, found["spent_usd"])
    assert set(states) <= {"finished", "limit"} and states.count("limit") >= 2
    assert all(arm["cause"] for arm in found["arms"] if arm["state"] == "limit")
    assert any(arm["state"] == "limit" and arm["step"] > 0 for arm in found["arms"]), "one was ended while it trained"
    assert any(arm["state"] == "limit" and arm["step"] == 0 for arm in found["arms"]), "one never started"
    assert not place.cloud.books()["alive"] and len(place.cloud.books()["instances"]) == 2
    assert 0 < found["spent_usd"] <= CEILING_USD


def assert_like_the_books(place: Place, usd: float) -> None:
    """The cloud's books, in whole cents for each machine."""
    machines = place.cloud.books()["instances"]
    cents = sum(each["cost_cents"] for each in machines)
    print(f"\nours {100 * usd:.1f} cents, the cloud's books {cents} cents, {len(machines)} machines")
    assert 100 * usd == pytest.approx(cents, abs=0.51 * len(machines))


def rental_bill(place: Place) -> float:
    with sqlite3.connect(place.home / "ledger.db") as ledger:
        ((data,),) = ledger.execute("SELECT data FROM rentals")
    return float(json.loads(data)["bill"]["cost_usd"])
