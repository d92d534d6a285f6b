"""A driver that is always on: started here, the laptop loses everything, the driver ends it; another run is taken back.
Its driver is a real sshd with its own copy of gptctl; the oracle is the cloud's books."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stories.conftest import digests, wait_until
from tests.stories.rented import BOX, SETTINGS, cloud, ended  # noqa: F401
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.machines.sshd import Sshd

LEASE_S = 600.0
STEPS, LONG = 20, 400
"""LONG: it trains while the driver is asked to let go of it."""


class Place:
    """A laptop and its driver `pi`, each with a GPTCTL_HOME, and a cloud."""

    def __init__(self, folder: Path, rented: RehearsalCloud, pi: Sshd, tiny: Callable[..., str]) -> None:
        self.folder, self.rented = folder, rented
        self.here, self.there = folder / "home", pi.home / ".gptctl" / "driver" / "home"
        (folder / "inventory.toml").write_text(BOX + pi.inventory_entry(extra=f'python = "{sys.executable}"\n'))
        for name, steps in (("kept", STEPS), ("long", LONG)):
            (folder / f"{name}.toml").write_text(f'extends = "{tiny(steps)}"\nname = "{name}"\n{SETTINGS}')

    def gptctl(self, *words: str, code: int = 0) -> tuple[str, str]:
        done = ended(self.folder, self.rented, *words, lease_s=LEASE_S)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout, done.stderr

    def started(self, recipe: str = "kept.toml") -> str:
        """A run that pi drives."""
        return self.gptctl("run", recipe, "--host", "box", "--driver", "pi", "--yes")[0].strip()

    def state(self, home: Path, run: str) -> str:
        """Of a run in that ledger, `` while it is not there."""
        if not (home / "ledger.db").exists():
            return ""
        with sqlite3.connect(f"file:{home}/ledger.db?mode=ro", uri=True, timeout=10) as ledger:
            found = ledger.execute("SELECT state FROM runs WHERE id = ?", (run,)).fetchone()
        return str(found[0]) if found else ""

    def end_driving(self) -> None:
        """What a failed test leaves behind: the process that drives, which ends only with its run."""
        for lock in (self.there / "locks").glob("*.lock"):
            with contextlib.suppress(ValueError, KeyError, ProcessLookupError):
                os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def place(
    tmp_path: Path,
    cloud: RehearsalCloud,  # noqa: F811
    machines: Callable[..., Sshd],
    tiny: Callable[..., str],
) -> Iterator[Place]:
    made = Place(tmp_path, cloud, machines("pi"), tiny)
    yield made
    made.end_driving()


@pytest.mark.nightly
def test_the_driver_ends_a_run_whose_laptop_lost_everything(place: Place) -> None:
    run = place.started()
    for words in (("resume", run), ("stop", run, "--yes")):
        assert "driven by pi" in place.gptctl(*words, code=2)[1]
    shutil.rmtree(place.here)
    wait_until(lambda: place.state(place.there, run) == "ended", 240)
    books = place.rented.books()
    assert not books["alive"] and len(books["instances"]) == 1
    out, _ = place.gptctl("status", run, "--driver", "pi", "--json")
    assert json.loads(out)["runs"][0]["outcome"] == "finished"
    place.gptctl("--driver", "pi", "fetch", run)
    latest = place.here / "runs" / run / "checkpoints" / "latest"
    promised = json.loads((latest / "MANIFEST.json").read_text())["files"]
    assert digests(latest.resolve()) == {name: entry["sha256"] for name, entry in promised.items()}


@pytest.mark.nightly
def test_a_run_that_was_taken_back_is_driven_here_alone(place: Place) -> None:
    run = place.started("long.toml")
    wait_until(lambda: place.state(place.there, run) == "training", 240)
    place.gptctl("driver", "take", run, "pi")
    left = place.state(place.there, run)
    assert "is driven by" in place.gptctl("--driver", "pi", "resume", run, code=2)[1]
    place.gptctl("resume", run)
    assert (place.state(place.here, run), place.state(place.there, run)) == ("ended", left)
    assert left in ("training", "ending"), "it was taken back before its end"
    books = place.rented.books()
    assert not books["alive"] and len(books["instances"]) == 1
