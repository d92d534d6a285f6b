"""What many machines cost: 200 real agents on this one, each with a training, and the ledger that hears of all of them.

    python -m tests.bench.many_agents              # the lines of `make bench --only agents`
    python -m tests.bench.many_agents --quick      # 20 agents
    python -m tests.bench.many_agents --agents 50  # as many as you like: each takes 13 MB and a second of one core

Every agent is the shipped program with a root folder, a supervisor and locks of its own; its training is a small
program that logs a step per second. No SSH: tests.bench.network measures that. Processor time is that of the processes
themselves, so that a busy machine does not matter; what 1,000 machines would take is 1,000 times one of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.events import Event
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.ledger import Ledger, RunRecord, new_run_id
from tests.bench.figure import Figure
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box

AGENTS, FEW = 200, 20
MANY = 1000
WATCHED_S = 20.0
LOOKS_EVERY_S = 60.0
"""How often a command line that follows a run would have to look at each machine."""
LEDGER_NOTES = 2000
AT_ONCE = 16
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def start(boxes: list[Box], folder: Path, agents: int) -> None:
    """Agents with a training each, all of which have logged a step. Appends to `boxes` as they start, so that those of
    a start that fails are ended too."""
    for number in range(agents):
        place = folder / f"{number:03d}"
        place.mkdir()
        boxes.append(Box(place))
        boxes[-1].start(steps=10**6, step_s=1.0, spec_ranks=1)
    until(lambda: all((box.root / "runs" / "r-1" / "metrics.jsonl").exists() for box in boxes), deadline_s=300)


def supervisors(boxes: Sequence[Box]) -> list[int]:
    """Their process ids."""
    return [int(box.state()["supervisor"]["pid"]) for box in boxes]


def processor_s(pids: Sequence[int]) -> float:
    """Seconds that these processes have computed so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * TICK_S


def own_mb(pids: Sequence[int]) -> float:
    """Memory per process that it shares with nobody, in MB."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return total / 1000 / len(pids)


def look(box: Box) -> tuple[int, float]:
    """Bytes of an answer to `status`, and seconds that the agent computed for it."""
    before = os.times()
    asked = json.dumps({"run": "r-1"}).encode()
    done = subprocess.run(box.argv("status"), input=asked, capture_output=True, check=True, timeout=120)
    after = os.times()
    return len(done.stdout), after.children_user + after.children_system - before.children_user - before.children_system


def ledger_ms(home: Path, notes: int) -> float:
    """Processor milliseconds of the ledger for one event and one line of progress of a run."""
    recipe = load_recipe("quickstart")
    plan = make_plan(recipe, None, machine_type("2xCPU"), None, now=time.time())
    with Ledger.open(home, time.time) as ledger:
        run = RunRecord(
            id=new_run_id(recipe.name, time.time()), recipe=recipe.name, host="box", machine="2xCPU",
            created_at=time.time(), recipe_digest=recipe.digest, recipe_data=recipe.resolved(), plan=plan,
        )  # fmt: skip
        ledger.add_run(run)
        began = time.process_time()
        for step in range(notes):
            ledger.tell(run.id, Event("said", time.time(), "follow", "step"))
            ledger.update_run(run.id, step=step)
        return (time.process_time() - began) / notes * 1000


def figures(*, quick: bool, agents: int | None = None) -> Iterator[Figure]:
    """The rows of `make bench`."""
    agents = agents or (FEW if quick else AGENTS)
    with tempfile.TemporaryDirectory() as folder:
        boxes: list[Box] = []
        try:
            start(boxes, Path(folder), agents)
            pids = supervisors(boxes)
            before, began = processor_s(pids), time.monotonic()
            time.sleep(WATCHED_S)
            each_ms = (processor_s(pids) - before) / (time.monotonic() - began) / agents * 1000
            yield Figure("agents on this machine", agents, "")
            yield Figure("an agent that supervises, of processors", each_ms, "ms/s")
            yield Figure("an agent that supervises, own memory", own_mb(pids), "MB")
            looks = [look(box) for box in boxes[:: max(1, agents // 20)]]
        finally:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(Box.end, boxes))
        size, seconds = (sum(values) / len(looks) for values in zip(*looks, strict=True))
        yield Figure("an answer to status", size / 1000, "kB")
        yield Figure("an answer to status, of the machine's processors", seconds * 1000, "ms")
        noted = ledger_ms(Path(folder) / "home", LEDGER_NOTES)
    yield Figure("an event and a step in the ledger, of processors", noted, "ms")
    yield Figure(f"{MANY:,} machines looked at once a minute: answers", MANY * size / LOOKS_EVERY_S / 1000, "kB/s")
    yield Figure(f"{MANY:,} machines noted once a minute: the ledger", MANY * noted / LOOKS_EVERY_S, "ms/s")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no agent outlives it
    typed = int(sys.argv[sys.argv.index("--agents") + 1]) if "--agents" in sys.argv else None
    for figure in figures(quick="--quick" in sys.argv, agents=typed):
        print(figure.line(), flush=True)
