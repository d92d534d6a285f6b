"""`make bench`: every benchmark in one run, side by side, as one table and in bench-results/.

    python -m tests.bench                       # all: about a quarter of an hour
    python -m tests.bench --only cloud --quick  # one of them, with fewer rounds and smaller files

Never a pass or a fail: a figure that misses its aim says so, and so does a benchmark that this machine cannot run. Each
benchmark is a process of its own with a deadline, so that none can hang the others; asked to end, it takes its
machines and networks along. The exit code is 1 only where one crashed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figure import CannotRun, Figure, not_measured

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "bench-results"
CLEAN_UP_WITHIN_S = 30.0


@dataclass(frozen=True)
class Bench:
    """`module` has `figures(quick)`, an iterator of Figures that raises CannotRun where this machine is no place."""

    name: str
    module: str
    deadline_s: float


BENCHES = (
    Bench("start", "tests.bench.start_speed", 480),
    Bench("commands", "tests.bench.status_speed", 120),
    Bench("history", "tests.bench.many_runs", 300),
    Bench("agents", "tests.bench.many_agents", 600),
    Bench("nodes", "tests.bench.nodes_speed", 600),
    Bench("cloud", "tests.bench.cloud_speed", 300),
    Bench("data", "tests.bench.data_speed", 300),
    Bench("export", "tests.bench.export_speed", 240),
    Bench("report", "tests.bench.report_speed", 120),
    Bench("staging", "tests.bench.staging_speed", 240),
    Bench("transfer", "tests.bench.transfer", 300),
    Bench("network", "tests.bench.network", 180),
    Bench("sampling", "tests.bench.trainer.sampling_speed", 300),
    Bench("cuda", "tests.bench.trainer.cuda_counts", 300),
    Bench("trainer", "tests.bench.trainer.trainer_speed", 600),
)


def main() -> int:
    """Prints the table as it grows; 1 where a benchmark crashed or passed its deadline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[bench.name for bench in BENCHES], help="repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller files")
    parser.add_argument("--worker", choices=[bench.name for bench in BENCHES], help=argparse.SUPPRESS)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that every `with` and `finally` cleans up
    if given.worker:
        return work(next(bench for bench in BENCHES if bench.name == given.worker), quick=given.quick)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"bench-{time.strftime('%Y%m%d-%H%M%S')}"
    figures: list[Figure] = []
    crashed = []
    for bench in BENCHES:
        if given.only and bench.name not in given.only:
            continue
        for figure in measured(bench, stem.with_suffix(".log"), quick=given.quick):
            print(figure.line(), flush=True)
            figures.append(figure)
        if figures and figures[-1].name == f"{bench.name} (crashed)":
            crashed.append(bench.name)
    stem.with_suffix(".json").write_text(json.dumps(summary(figures), indent=1) + "\n")
    print(footer(figures, stem.with_suffix(".json")))
    return 1 if crashed else 0


def measured(bench: Bench, log: Path, *, quick: bool) -> Iterator[Figure]:
    """The figures of one benchmark in its own process, as they come."""
    argv = [sys.executable, "-m", "tests.bench", "--worker", bench.name, *(["--quick"] if quick else [])]
    with log.open("ab") as errors:
        process = subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
    late = threading.Event()

    def end() -> None:
        late.set()
        process.send_signal(signal.SIGTERM)

    timers = [
        threading.Timer(bench.deadline_s, end),
        threading.Timer(bench.deadline_s + CLEAN_UP_WITHIN_S, kill_group, [process]),
    ]
    for timer in timers:
        timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            yield Figure(**json.loads(line))
        code = process.wait()
    finally:
        for timer in timers:
            timer.cancel()
        if process.poll() is None:  # we are being interrupted
            process.send_signal(signal.SIGTERM)
            process.wait(CLEAN_UP_WITHIN_S)
    if late.is_set() or code != 0:
        why = f"ended at its deadline of {bench.deadline_s:.0f} s" if late.is_set() else f"exit code {code}"
        yield not_measured(f"{bench.name} (crashed)", f"{why}; see {log.relative_to(REPOSITORY)}")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """It did not end when asked; its children go with it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def work(bench: Bench, *, quick: bool) -> int:
    """The other side of measured(): one figure per line, as JSON. What children print is no figure."""
    figures = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        for figure in importlib.import_module(bench.module).figures(quick=quick):
            print(json.dumps(figure.to_json()), file=figures)
    except CannotRun as reason:
        print(json.dumps(not_measured(bench.name, str(reason)).to_json()), file=figures)
    return 0


def summary(figures: list[Figure]) -> dict[str, object]:
    """What bench-results/ keeps."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "figures": [figure.to_json() for figure in figures],
    }


def footer(figures: list[Figure], file: Path) -> str:
    """How many aims were met, how busy the machine was, and where the figures lie."""
    aimed = [figure for figure in figures if figure.met is not None]
    met = sum(figure.met is True for figure in aimed)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return f"{met} of {len(aimed)} aims met; {load}; {file.relative_to(REPOSITORY)}"


if __name__ == "__main__":
    sys.exit(main())
