"""How long `gptctl report` takes for a run of 100,000 lines of metrics, how large its page is, and when it is painted.

    python -m tests.bench.report_speed               # the lines of `make bench --only report`

The whole command as a user types it: ledger, metrics, Markdown, JSON and the HTML page. The best of a few rounds
counts, because what else runs on the machine only ever makes one slower; the processor time beside it says how busy
the machine was. Paint needs Chromium; without one its row says so.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.ledger import Ledger, RunRecord, new_run_id
from orchestrator.report.summary import REPORT_HTML
from tests.bench.figure import Figure, not_measured, within
from tests.bench.status_speed import REPOSITORY, seconds
from tests.support.files.browser import Browser
from trainer.run_files import EVENTS, METRICS

LINES = 100_000
TOKENS_PER_STEP = 98_304
VALIDATE_EVERY = 617
LIMIT_S = 2.0
LIMIT_MB = 5.0
LIMIT_PAINT_S = 1.0


def fill(home: Path) -> Path:
    """A ledger with one run of that many lines in its mirror; the mirror's folder."""
    recipe = load_recipe(str(REPOSITORY / "recipes/chinchilla_163m_baseline.toml"))
    plan = make_plan(recipe, None, machine_type("8xA100-40GB"), None, now=time.time())
    with Ledger.open(home, time.time) as ledger:
        now = time.time()
        run = RunRecord(
            id=new_run_id(recipe.name, now), recipe=recipe.name, host="box", machine="8xA100-40GB", created_at=now,
            recipe_digest=recipe.digest, recipe_data=recipe.resolved(), plan=plan, step=LINES, total_steps=LINES,
        )  # fmt: skip
        ledger.add_run(run)
    mirror = home / "runs" / run.id
    mirror.mkdir(parents=True)
    noise = random.Random(1)
    with (mirror / METRICS).open("w") as metrics, (mirror / EVENTS).open("w") as events:
        for step in range(1, LINES + 1):
            metrics.write(json.dumps(line(step, noise)) + "\n")
            if step % VALIDATE_EVERY == 0:
                events.write(json.dumps({"event": "validated", "step": step, "val_loss": 11 / step**0.1}) + "\n")
    return mirror


def line(step: int, noise: random.Random) -> dict[str, object]:
    """As the trainer writes it, with as many digits."""
    parts = {"data": 0.002, "forward_backward": 0.33, "optimizer": 0.03, "log": 0.004}
    return {
        "step": step,
        "tokens": step * TOKENS_PER_STEP,
        "loss": 11 / step**0.1 + noise.gauss(0, 0.05),
        "lr": 1.4e-3 * (0.55 + 0.45 * math.cos(math.pi * step / LINES)),
        "grad_norm": abs(noise.gauss(0.6, 0.2)),
        "tokens_per_second": round(noise.gauss(265_000, 3_000), 1),
        "mfu": noise.gauss(0.41, 0.005),
        "memory_gib": 31.25,
        "time": round(1_795_000_000 + step * 0.371, 3),
        "skipped_steps": 0,
        "clipped_share": 0.0,
        "seconds": {part: round(value * noise.uniform(0.9, 1.1), 6) for part, value in parts.items()},
    }


def painted(page: Path) -> Figure:
    """Milliseconds until Chromium first painted, the best of three loads."""
    name = "report page, first paint in Chromium"
    if shutil.which("chromium") is None:
        return not_measured(name, "no chromium on this machine")
    with Browser() as browser:
        times = [browser.open(page).first_paint_ms for _ in range(3)]
    known = [each / 1000 for each in times if each is not None]
    return within(name, min(known), "s", LIMIT_PAINT_S) if known else not_measured(name, "nothing was painted")


def figures(*, quick: bool) -> Iterator[Figure]:
    """Seconds by the clock and of processors, megabytes, and seconds to the first paint."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        mirror = fill(home)
        command = [sys.executable, "-m", "orchestrator", "report"]
        rounds = [seconds(command, home) for _ in range(3 if quick else 7)]
        yield within("gptctl report of 100,000 lines", min(wall for wall, _ in rounds), "s", LIMIT_S)
        yield Figure("gptctl report of 100,000 lines, of processors", min(cpu for _, cpu in rounds), "s")
        yield within("report page", (mirror / REPORT_HTML).stat().st_size / 1e6, "MB", LIMIT_MB)
        yield painted(mirror / REPORT_HTML)


if __name__ == "__main__":
    for figure in figures(quick="--quick" in sys.argv):
        print(figure.line(), flush=True)
