"""Two machines rented as one, one of which cannot be had, goes, or falls silent: none is left, and no cent is missing.
The oracle is the cloud's own books."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from tests.faults.conftest import Rehearsal
from tests.stories.conftest import wait_until
from tests.support.files.recipes import write_small

pytestmark = pytest.mark.faults
EVERY = 20
PAIR = """
[hosts.cloud]
provider = "rehearsal"
machine = "1xH100-simulated"
nodes = 2
guard = "{guard}"
python = "{python}"
max_cost_usd = 10
on_node_lost = "{policy}"
"""


def pair(
    rehearse: Callable[..., Rehearsal], fault: str, *, steps: int = 100_000, policy: str = "end", guard: str = "watcher"
) -> Rehearsal:
    """A cloud, and a host of two machines there."""
    place = rehearse(fault)
    write_small(place.folder, steps=steps, every=EVERY, machine="2x1xH100-simulated")
    inventory = PAIR.format(guard=guard, python=sys.executable, policy=policy)
    (place.folder / "inventory.toml").write_text(inventory)
    return place


def machines(place: Rehearsal) -> list[str]:
    """Ids of what was bought, in the order of the nodes."""
    return [str(row["id"]) for row in place.cloud.books()["instances"] if not row["foreign"]]


def until_trained(place: Rehearsal, steps: int) -> None:
    wait_until(lambda: place.trained(steps), 300)


def until_safe_here(place: Rehearsal) -> None:
    wait_until(lambda: list((place.home / "runs").glob("*/checkpoints/step-*/MANIFEST.json")), 300)


def test_capacity_ends_after_half(rehearse: Callable[..., Rehearsal]) -> None:
    place = pair(rehearse, "N1 half the machines bought, then capacity ends", steps=60)
    run = place.run(inject="sells-only@1")
    assert run.returncode == 3, run.stderr
    assert "sells-only" in place.cloud.fired()
    assert place.settled(bought=8)
    assert place.newest()["outcome"] == "never_started"


def test_one_nodes_guard_fires(rehearse: Callable[..., Rehearsal]) -> None:
    place = pair(rehearse, "N2 the guard of one node fires while it trains", guard="key-on-box")
    process = place.begin()
    until_trained(place, EVERY + 5)
    lease = place.cloud.home(machines(place)[1]) / ".gptctl" / "guard" / "lease.json"
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "deadline_left_s": 0.0, "left_s": 0.0}))
    assert place.wait(process) == 5, place.words()
    assert "node cloud-1 (" in place.words() and "is lost" in place.words()
    assert place.settled(bought=2)
    place.check(outcome="failed", priced=False)


def test_released_with_one_node_unreachable(rehearse: Callable[..., Rehearsal]) -> None:
    place = pair(rehearse, "N3 release with one node unreachable")
    assert place.run("-d").returncode == 0
    with place.no_network(api=False, machine=machines(place)[1]):
        done = place.gptctl("release", place.run_id(), "--force", "--yes")
    assert done.returncode == 0, done.stderr
    assert place.settled(bought=2)


def test_the_head_dies(rehearse: Callable[..., Rehearsal]) -> None:
    place = pair(rehearse, "N4 the head dies, and the other node goes on", policy="continue")
    process = place.begin()
    until_safe_here(place)
    place.cloud.terminate(machines(place)[0])
    wait_until(lambda: "going on from step " in place.words(), 120)
    began = int(place.words().rpartition("going on from step ")[2].split()[0])
    assert began >= EVERY
    until_trained(place, began + EVERY)
    assert place.gptctl("stop", place.run_id(), "--yes").returncode == 0
    assert place.wait(process) == 0, place.words()
    assert place.settled(bought=2)
    place.check(outcome="stopped", priced=False)
