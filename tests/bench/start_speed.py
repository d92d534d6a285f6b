"""How fast one gets going: the help, an unchanged sync, a warm start, and a line's way to the terminal.

    python -m tests.bench.start_speed

The warm start is measured against what one would type without gptctl: rsync of the code and the config, then torchrun
under nohup over ssh. Both end at the first byte of the trainer's output on a real sshd on loopback. Rounds alternate
and the median counts.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figure import Figure, at_most, within
from tests.support.machines.sshd import Sshd

REPOSITORY = Path(__file__).resolve().parents[2]
ROUNDS = 5
HELP_FACTOR, WARM_FACTOR, SYNC_LIMIT_S, LATENCY_LIMIT_S = 8.0, 1.5, 1.0, 1.0
RECIPE = """
extends = "{quickstart}"
name = "warm"
[train]
tokens = {tokens}
log_every = 5
"""
STEP = re.compile(r"step (\d+)\s+loss")


class Place:
    """A box to train on, an inventory that names it, and a GPTCTL_HOME, all temporary."""

    def __init__(self, folder: Path, box: Sshd) -> None:
        self.folder, self.box = folder, box
        self.inventory = folder / "inventory.toml"
        self.inventory.write_text(box.inventory_entry(extra=f'python = "{sys.executable}"\n'))
        self.env = {
            **os.environ,
            "GPTCTL_HOME": str(folder / "home"),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        }
        self.runs = box.home / ".gptctl" / "runs"

    def recipe(self, steps: int) -> str:
        path = self.folder / f"warm-{steps}.toml"
        path.write_text(RECIPE.format(quickstart=REPOSITORY / "recipes/quickstart.toml", tokens=steps * 16 * 128))
        return str(path)

    def gptctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orchestrator", *args]
        return subprocess.run(
            argv, env=self.env, cwd=self.folder, check=True, capture_output=True, text=True, timeout=120
        )

    def run(self, steps: int, *more: str) -> subprocess.CompletedProcess[str]:
        where = ("--host", self.box.name, "--inventory", str(self.inventory), "--yes", "--again")
        return self.gptctl("run", self.recipe(steps), *where, *more)


@contextmanager
def place() -> Iterator[Place]:
    """A fresh place; everything ends with the block."""
    with tempfile.TemporaryDirectory() as folder, Sshd(Path(folder) / "machines") as box:
        yield Place(Path(folder), box)


def seconds(act: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def help_speed(rounds: int) -> Figure:
    """`gptctl --help` against `python -c pass`."""
    plain, ours = [sys.executable, "-c", "pass"], [sys.executable, "-m", "orchestrator", "--help"]

    def call(argv: list[str]) -> float:
        return seconds(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd=REPOSITORY))

    times = [(call(plain), call(ours)) for _ in range(rounds)]
    python_s, help_s = (statistics.median(each) for each in zip(*times, strict=True))
    return at_most("gptctl --help", help_s, python_s, "s", "python -c pass", HELP_FACTOR)


def until_output(log: Callable[[], Path | None], start: Callable[[], object]) -> float:
    """Seconds from calling `start` to the first byte of the trainer's output."""
    began = time.perf_counter()
    process = start()
    while True:
        path = log()
        if path is not None and path.exists() and path.stat().st_size:
            took = time.perf_counter() - began
            break
        if time.perf_counter() - began > 120:
            raise TimeoutError("the trainer said nothing for 120 s")
        time.sleep(0.005)
    if isinstance(process, subprocess.Popen):
        process.wait()
    return took


def warm_start(here: Place, rounds: int) -> Figure:
    """`gptctl run` on a host that has everything, against rsync + nohup torchrun by hand."""
    here.run(10)
    mine, theirs = [], []
    for number in range(rounds):
        known = set(here.runs.iterdir())
        mine.append(until_output(lambda known=known: _new_log(here, known), lambda: _start(here)))
        here.gptctl("resume")
        theirs.append(until_output(*_by_hand(here, number)))
        _wait_for_end(here.box.home / f"by-hand-{number}")
    return at_most(
        "warm start, to the trainer's first line", statistics.median(mine), statistics.median(theirs), "s",
        "rsync + nohup", WARM_FACTOR,
    )  # fmt: skip


def _new_log(here: Place, known: set[Path]) -> Path | None:
    fresh = set(here.runs.iterdir()) - known
    return fresh.pop() / "train.log" if fresh else None


def _start(here: Place) -> subprocess.Popen[bytes]:
    where = ["--host", here.box.name, "--inventory", str(here.inventory), "--yes", "--again", "-d"]
    argv = [sys.executable, "-m", "orchestrator", "run", here.recipe(10), *where]
    return subprocess.Popen(argv, env=here.env, cwd=here.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _by_hand(here: Place, number: int) -> tuple[Callable[[], Path], Callable[[], subprocess.Popen[bytes]]]:
    """The script one would write: two rsyncs and one ssh. The config is that of gptctl's own run."""
    box = here.box
    run = box.home / f"by-hand-{number}"
    config = here.folder / f"run-{number}" / "config.json"
    config.parent.mkdir()
    config.write_bytes((max(here.runs.iterdir(), key=lambda path: path.stat().st_mtime) / "config.json").read_bytes())
    known_hosts = here.folder / "known_hosts"
    known_hosts.write_text(box.known_hosts_line())
    ssh = f"ssh -p {box.port} -i {box.key_file} -o UserKnownHostsFile={known_hosts} -o BatchMode=yes"
    target = f"{box.user}@{box.host}"
    command = (
        f"cd {run} && PYTHONPATH={box.home}/code OMP_NUM_THREADS=1 nohup {sys.executable} -m torch.distributed.run "
        f"--standalone --nproc_per_node=2 -m trainer {run} > {run}/train.log 2>&1 < /dev/null &"
    )
    script = "\n".join(
        (
            "set -e",
            f"rsync -a -e {shlex.quote(ssh)} {REPOSITORY}/trainer {target}:{box.home}/code/",
            f"rsync -a -e {shlex.quote(ssh)} {config.parent}/ {target}:{run}/",
            f"{ssh} {target} {shlex.quote(command)}",
        )
    )
    (box.home / "code").mkdir(exist_ok=True)
    return (lambda: run / "train.log"), (lambda: subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL))


def _wait_for_end(run: Path) -> None:
    deadline = time.monotonic() + 120
    while not (run / "exit.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)


def unchanged_sync(here: Place, rounds: int) -> Figure:
    """The sync stage of a run whose trainer and data are on the machine already, as the ledger timed it."""
    took = []
    for _ in range(rounds):
        here.run(10)
        newest = max((here.folder / "home" / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
        took.append(json.loads((newest / "cost.json").read_text())["hours_by_stage"]["sync"] * 3600)
    return within("sync with nothing changed", statistics.median(took), "s", SYNC_LIMIT_S)


def log_latency(here: Place) -> Figure:
    """From the time stamp in the trainer's own metrics line to the moment the same step is on the terminal."""
    argv = [sys.executable, "-m", "orchestrator", "run", here.recipe(400), "--host", here.box.name]
    argv += ["--inventory", str(here.inventory), "--yes", "--again"]
    shown: dict[int, float] = {}
    with subprocess.Popen(
        argv, env={**here.env, "PYTHONUNBUFFERED": "1"}, cwd=here.folder, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        late = threading.Timer(120, process.kill)
        late.start()
        try:
            for line in process.stderr:
                found = STEP.search(line)
                if found:
                    shown.setdefault(int(found[1]), time.time())
        finally:
            late.cancel()
            process.kill()
    newest = max(here.runs.iterdir(), key=lambda path: path.stat().st_mtime)
    written = [json.loads(line) for line in (newest / "metrics.jsonl").read_text().splitlines()]
    late = [shown[line["step"]] - line["time"] for line in written if line["step"] in shown]
    return within(f"log line to terminal, median of {len(late)}", statistics.median(late), "s", LATENCY_LIMIT_S)


def figures(*, quick: bool) -> Iterator[Figure]:
    """All of them, in order."""
    rounds = 2 if quick else ROUNDS
    yield help_speed(4 * rounds)
    with place() as here:
        yield warm_start(here, rounds)
        yield unchanged_sync(here, rounds)
        yield log_latency(here)


if __name__ == "__main__":
    for figure in figures(quick=False):
        print(figure.line(), flush=True)
