"""How long commands take that ask nobody: `status --json` with many runs in the ledger, and `plan` offline.

    python tests/bench/status_speed.py                    # 1,000 runs; a table on stdout, JSON by --json FILE
    python tests/bench/status_speed.py --runs 10000

The ledger is a real one: each run has its recipe, plan, rental, eight stages, twenty-four events and what was measured
of it: two slices and a sample. All have ended, so
no machine is asked. Calls alternate and the best of each counts, because other programs on the machine only ever make
one slower; the processor time beside it says how busy the machine was. Never a timed test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.events import Event
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import Evaluation, Ledger, Rental, RunRecord, new_rental_id, new_run_id
from orchestrator.report.evaluations import from_line, sampled
from tests.bench.figure import Figure, within

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = ("acquire", "provision", "sync", "launch", "follow", "fetch", "report", "release")
LIMIT_S = 0.4
PLAN_LIMIT_S = 0.5


def fill(home: Path, runs: int) -> None:
    """A ledger with that many ended runs, written through its own interface."""
    recipe = load_recipe(str(REPOSITORY / "recipes/chinchilla_163m_baseline.toml"))
    plan = make_plan(recipe, None, machine_type("8xA100-40GB"), None, now=time.time())
    with Ledger.open(home, time.time) as ledger:
        for _ in range(runs):
            now = time.time()
            rental = Rental(new_rental_id("8xA100-40GB", now), "ssh", "box", "8xA100-40GB", now)
            run = RunRecord(
                id=new_run_id(recipe.name, now), recipe=recipe.name, host="box", machine="8xA100-40GB", created_at=now,
                recipe_digest=recipe.digest, recipe_data=recipe.resolved(), plan=plan, rental_id=rental.id,
                step=33_165, total_steps=33_165, loss=3.2, val_loss=3.3, tokens_per_second=265_000.0,
            )  # fmt: skip
            ledger.add_rental(rental)
            ledger.add_run(run)
            for stage in STAGES:
                interval = ledger.open_stage(run.id, rental.id, stage, 15.92)
                for kind in ("stage_started", "said", "stage_finished"):
                    ledger.tell(run.id, Event(kind, now, stage, "connecting"))
                ledger.close_stage(interval)
            for each in scores(run.id, now):
                ledger.add_evaluation(each)
            ledger.set_state(run.id, State.ENDED, outcome=Outcome.FINISHED)


def scores(run_id: str, now: float) -> list[Evaluation]:
    """What `[eval]` with two slices and one prompt leaves behind."""
    told = {
        "tokens": 983_040,
        "tokens_sha256": "0" * 64,
        "perplexity": 33.1,
        "bits_per_byte": 1.08,
        "precision": "bf16",
    }
    slices = [from_line(run_id, 33_165, {"kind": "slice", "slice": [start, 983_040], "loss": 3.5, **told}, now)
              for start in (0, 50_000_000)]  # fmt: skip
    sample = sampled(run_id, 33_165, {"prompt": "Every effort moves you", "text": "Every effort " * 40}, now)
    return [*filter(None, slices), sample]


def seconds(argv: Sequence[str], home: Path) -> tuple[float, float]:
    """Wall and processor time of one call that must succeed."""
    began, before = time.perf_counter(), os.times()
    environment = {**os.environ, "GPTCTL_HOME": str(home)}
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=REPOSITORY, timeout=60)
    wall_s, after = time.perf_counter() - began, os.times()
    return wall_s, sum(after[2:4]) - sum(before[2:4])


def measure(runs: int, rounds: int) -> dict[str, float]:
    """Best seconds of each command, and the number of runs that the answer really had."""
    # In memory: filling commits 44,000 times, minutes of fsync on a slow disk; it is read from memory anyway.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        home = Path(folder) / "home"
        fill(home, runs)
        command = [sys.executable, "-m", "orchestrator", "status", "--json"]
        answer = subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "GPTCTL_HOME": str(home)}, cwd=REPOSITORY,
            timeout=60,
        )  # fmt: skip
        times = [(seconds([sys.executable, "-c", "pass"], home), seconds(command, home)) for _ in range(rounds)]
        return {
            "runs": len(json.loads(answer.stdout)["runs"]),
            "python_s": min(python[0] for python, _ in times),
            "status_json_s": min(status[0] for _, status in times),
            "status_json_cpu_s": min(status[1] for _, status in times),
            "limit_s": LIMIT_S,
            "ledger_bytes": sum(path.stat().st_size for path in home.glob("ledger.db*")),
        }


def plan_seconds(rounds: int) -> float:
    """Best wall time of `gptctl plan --offline` over all machine types."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "orchestrator", "plan", "chinchilla_163m_baseline", "--offline", "--json"]
        return min(seconds(argv, Path(folder) / "home")[0] for _ in range(rounds))


def figures(*, quick: bool) -> Iterator[Figure]:
    """The rows of `make bench`."""
    rounds = 3 if quick else 7
    found = measure(1000, rounds)
    yield within("gptctl status --json with 1,000 runs", found["status_json_s"], "s", LIMIT_S)
    yield within("gptctl plan, all machine types, offline", plan_seconds(rounds), "s", PLAN_LIMIT_S)


def main() -> None:
    """Prints the figures; exits 0 whether the limit is met or not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.runs, given.rounds)
    met = "met" if found["status_json_s"] <= LIMIT_S else "NOT met"
    print(f"python -c pass         {found['python_s']:.3f} s")
    print(
        f"gptctl status --json   {found['status_json_s']:.3f} s with {found['runs']} runs; at most {LIMIT_S} s: {met}"
    )
    print(f"  of which processor   {found['status_json_cpu_s']:.3f} s")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
