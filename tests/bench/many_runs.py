"""What a long history costs: `status` and `cost` with 5,000 runs against one run, and a report of a million lines.

    python -m tests.bench.many_runs                # the lines of `make bench --only many_runs`

Processor time, as a ratio where two sizes are compared in one call, so that a busy machine does not matter; memory is
the peak of the process. The ledger has one run that was written through its own interface, copied with other ids.
"""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench import report_speed, status_speed
from tests.bench.figure import Figure, within
from tests.bench.report_speed import REPOSITORY
from trainer.run_files import METRICS

RUNS = 5000
LINES = 1_000_000
MOST_RATIO = 1.5
COST_LIMIT_S = 1.0
REPORT_LIMIT_MB = 150.0
COPIES = {
    "rentals": ("id",), "runs": ("id", "rental_id"), "events": ("run_id",), "stage_intervals": ("run_id", "rental_id"),
    "evaluations": ("run_id",),
}  # fmt: skip
"""Tables that grow with runs, and their columns that name one."""


def fill(home: Path, runs: int) -> None:
    """A ledger with that many ended runs."""
    status_speed.fill(home, 1)
    with sqlite3.connect(home / "ledger.db") as connection:
        for table, ids in COPIES.items():
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[1:6:4] != ("id", 1)]
            names = [name for name in names if table not in ("events", "stage_intervals") or name != "id"]
            names += ["id"] * (table in ("rentals", "runs"))
            values = [f"{name} || '-' || ?1" if name in ids else name for name in names]
            sql = f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)} FROM first.{table}"
            if not connection.execute("SELECT 1 FROM pragma_database_list WHERE name = 'first'").fetchone():
                connection.commit()
                connection.execute("ATTACH ? AS first", (str(copy_of(home)),))
            connection.executemany(sql, ((number,) for number in range(runs - 1)))


def copy_of(home: Path) -> Path:
    """The ledger as it is now, as another file."""
    copy = home / "first.db"
    with sqlite3.connect(home / "ledger.db") as source, sqlite3.connect(copy) as target:
        source.backup(target)
    return copy


def processor_s(home: Path, *words: str, rounds: int = 3) -> float:
    """Of the quickest of a few calls."""
    command = [sys.executable, "-m", "orchestrator", *words]
    return min(status_speed.seconds(command, home)[1] for _ in range(rounds))


def peak_mb(home: Path, *words: str) -> float:
    """The most memory that a command held, in MB."""
    command = [sys.executable, "-m", "orchestrator", *words]
    environment = {**os.environ, "GPTCTL_HOME": str(home)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, cwd=REPOSITORY) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    unit = 1024 if sys.platform == "linux" else 1
    return used.ru_maxrss * unit / 1e6


def fill_lines(home: Path, lines: int) -> None:
    """One run with that many lines of metrics."""
    mirror, noise = report_speed.fill(home), random.Random(1)
    block = [report_speed.json.dumps(report_speed.line(step, noise)) for step in range(1, 1001)]
    with (mirror / METRICS).open("w") as file:
        for step, text in zip(range(1, lines + 1), itertools.cycle(block)):
            file.write(f'{{"step": {step},{text.partition(",")[2]}\n')


def history(runs: int = RUNS) -> Iterator[Figure]:
    """Ratios and seconds of processors."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as many:
        fill(Path(one), 1)
        fill(Path(many), runs)
        for words in (("status",), ("cost",)):
            first, all_of_them = (processor_s(Path(home), *words) for home in (one, many))
            name = f"gptctl {words[0]}"
            yield Figure(f"{name} with one run, of processors", first, "s")
            if words == ("status",):
                yield Figure(f"{name} with {runs:,} runs, of processors", all_of_them, "s")
                yield within(f"{name} with {runs:,} runs, times one run", all_of_them / first, "x", MOST_RATIO)
            else:
                yield within(f"{name} with {runs:,} runs, of processors", all_of_them, "s", COST_LIMIT_S)


def figures(*, quick: bool) -> Iterator[Figure]:
    """The rows of `make bench`."""
    yield from history()
    with tempfile.TemporaryDirectory() as folder:
        fill_lines(Path(folder), LINES // (10 if quick else 1))
        yield within("gptctl report of a million lines, memory", peak_mb(Path(folder), "report"), "MB", REPORT_LIMIT_MB)


if __name__ == "__main__":
    for figure in figures(quick="--quick" in sys.argv):
        print(figure.line(), flush=True)
