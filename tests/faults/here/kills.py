"""gptctl killed at random moments while the lists of its cloud lie: nothing is left unnamed, doubled or paid unseen.

    python -m tests.faults.here.kills --kills 60 --seed 7

Prints one line per run and the sums. Each run has 20 steps, a GPTCTL_HOME of its own and a lie at every launch of a
command; its command line is killed by SIGKILL three to six times and then resumed to its end. Exits 1 when a machine is
alive and not named, an intent bought two, a training was started twice, or our cost is below the cloud's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import gptctl_command
from tests.faults.cloud.lies import LIES, Lie
from tests.faults.conftest import HOST
from tests.faults.here.soak import LONGEST_S, RESUMES, STEPS
from tests.stories.conftest import newest_run
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.recipes import SIMULATED, write_small
from tests.support.files.repository import REPOSITORY
from tests.support.machines.sshd import free_address

KILLS = (3, 6)
"""Of one run."""
FIRST = ("run", "tiny.toml", "--host", "cloud", "--yes")


@dataclass
class Place:
    """One run's home on the shared cloud."""

    folder: Path
    cloud: RehearsalCloud
    name: str
    moments: random.Random
    longest_s: float
    """Of a command before it is killed."""
    kills: int = 0
    unnamed: int = 0
    """Commands that ended and left a machine alive without its id in their words and exit code 7."""
    lies: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / self.name

    @property
    def env(self) -> Mapping[str, str]:
        own = {"GPTCTL_HOME": str(self.home), "GPTCTL_REHEARSAL": str(self.cloud.state), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own, "PYTHONPATH": str(REPOSITORY)}

    def argv(self) -> list[str]:
        run_id = newest_run(self.home)
        return gptctl_command("resume", run_id) if run_id else gptctl_command(*FIRST)

    def lie(self) -> None:
        """Tells another lie: from the launch on while nothing is bought, from now on afterwards."""
        name, lie = self.moments.choice(sorted(LIES.items(), key=lambda each: each[0]))
        self.cloud.ask("POST", "/rehearsal/inject", {"clear": ""})
        self.cloud.inject(_script(lie, bought=bool(self.machines())))
        self.lies.append(name)

    def machines(self) -> list[Mapping[str, object]]:
        """What the cloud's books have of this run's rental."""
        rental = self._column("SELECT id FROM rentals")
        books = self.cloud.ask("GET", "/rehearsal/books")[1]["instances"]
        return [row for row in books if any(f"gptctl-{each}" in row["name"] for each in rental)]

    def started(self) -> int:
        """Trainings that were started."""
        return len(self._column("SELECT run_id FROM attempts"))

    def _column(self, sql: str) -> list[str]:
        if not (self.home / "ledger.db").exists():
            return []
        with closing(sqlite3.connect(f"file:{self.home}/ledger.db?mode=ro", uri=True)) as ledger:
            return [str(value) for (value,) in ledger.execute(sql)]

    def killed(self) -> None:
        """One command under a lie, ended by SIGKILL after a random time."""
        self.lie()
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(self.argv(), env=self.env, cwd=self.folder, stdout=quiet, stderr=quiet)
        try:
            process.wait(self.moments.uniform(0, self.longest_s))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.kills += 1

    def ended(self) -> int:
        """One command under a lie, to its end; its exit code."""
        self.lie()
        done = subprocess.run(
            self.argv(), env=self.env, cwd=self.folder, capture_output=True, text=True, check=False, timeout=900
        )
        said = done.stdout + done.stderr
        left = [str(row["id"]) for row in self.machines() if row["alive"]]
        self.unnamed += any(each not in said or done.returncode != 7 for each in left)
        return done.returncode


def _script(lie: Lie, *, bought: bool) -> str:
    return ",".join(filter(None, [lie.before, lie.now if bought else lie.from_launch]))


@dataclass(frozen=True)
class Result:
    """What one run came to; money in cents."""

    kills: int
    lies: str
    outcome: str
    bought: int
    alive: int
    unnamed: int
    started: int
    theirs: int
    ours: int

    @property
    def survived(self) -> bool:
        """Whether nothing was left, doubled or paid unseen, and what trained is known to have trained."""
        started = {1} if self.outcome == "finished" else {0, 1}
        return not (self.alive or self.unnamed) and self.started in started and self.ours >= self.theirs - 1


def one(place: Place, left: int) -> Result:
    """One run, killed at random, then driven to its end."""
    for _ in range(min(left, place.moments.randint(*KILLS))):
        place.killed()
    codes = (place.ended() for _ in range(RESUMES))
    any(code == 0 for code in codes)
    said = subprocess.run(
        gptctl_command("status", "--json"), env=place.env, capture_output=True, text=True, check=True
    ).stdout
    rows, machines = json.loads(said)["runs"], place.machines()
    return Result(
        kills=place.kills,
        lies=", ".join(place.lies),
        outcome=str(rows[0]["outcome"]) if rows else "none",
        bought=len(machines),
        alive=sum(bool(row["alive"]) for row in machines),
        unnamed=place.unnamed,
        started=place.started(),
        theirs=sum(int(str(row["cost_cents"])) for row in machines),
        ours=round(100 * sum(row["cost_usd"] or 0 for row in rows)),
    )


def killed_so_often(
    folder: Path, cloud: RehearsalCloud, kills: int, moments: random.Random, longest_s: float
) -> list[Result]:
    """One run after another until there were so many kills; each is printed."""
    results: list[Result] = []
    while (left := kills - sum(each.kills for each in results)) > 0:
        began = time.monotonic()
        place = Place(folder, cloud, f"home-{len(results)}", moments, longest_s)
        results.append(one(place, left))
        words = "" if results[-1].survived else "  FAILED"
        print(f"{len(results):>3} {results[-1]}  {time.monotonic() - began:.0f} s{words}", flush=True)
    return results


def main() -> int:
    """Returns 1 unless every run survived and no intent bought two machines."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=60)
    options.add_argument("--seed", type=int, default=random.randrange(2**32))
    options.add_argument("--longest-s", type=float, default=LONGEST_S)
    chosen = options.parse_args()
    print(f"{chosen.kills} kills under lists that lie, --seed {chosen.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gptctl-kills-") as temporary:
        folder = Path(temporary)
        write_small(folder, steps=STEPS, every=10)
        (folder / "inventory.toml").write_text(
            HOST.format(machine=SIMULATED, guard="watcher", python=sys.executable, most_usd=10)
        )
        with RehearsalCloud(folder / "cloud", f"--ssh-port={free_address()[1]}", boot_s=1.0) as cloud:
            results = killed_so_often(folder, cloud, chosen.kills, random.Random(chosen.seed), chosen.longest_s)
            books = cloud.books()
    most = max(books["launches_by_intent"].values(), default=0)
    print(
        f"{sum(each.kills for each in results)} kills in {len(results)} runs: machines bought "
        f"{sum(each.bought for each in results)}, most per intent {most}, alive {sum(each.alive for each in results)}, "
        f"left unnamed {sum(each.unnamed for each in results)}, trainings started "
        f"{sum(each.started for each in results)}, ours {sum(each.ours for each in results)} c, "
        f"theirs {sum(each.theirs for each in results)} c"
    )
    return int(most > 1 or not all(each.survived for each in results))


if __name__ == "__main__":
    sys.exit(main())
