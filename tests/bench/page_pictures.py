"""The live page in real Chromium: how fast it is with many runs, and pictures of it during a real sweep.

    python -m tests.bench.page_pictures speed                     # first paint and updates with 1,000 and 10,000 runs
    python -m tests.bench.page_pictures pictures docs/guides      # four pictures, while small recipes train here

The pictures are of a real run and a real sweep on this computer, which take some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from tests.bench.figure import Figure, within
from tests.support.clock.waiting import until
from tests.support.files.browser import Browser
from tests.support.files.recipes import SMALL, write_tokens

SIZES = ((1280, False), (1280, True), (390, False), (390, True))
SWEEP = 'name = "learning-rates"\nbaseline = "small.toml"\nseeds = 2\n[set]\n"train.learning_rate" = [2e-3, 5e-5]\n'
RECIPE = """name = "small"
{model}
[train]
tokens = {tokens}
global_batch = 8
learning_rate = 5e-3
precision = "fp32"
log_every = 5
checkpoint_every = 150
validate_every = 25
[data]
source = "tokens"
tokenizer = "bytes"
order = "shuffled"
[data.validation]
tokens = 8_192
[machines.1xCPU]
micro_batch = 8
"""


def environment(home: Path) -> dict[str, str]:
    own = {"GPTCTL_HOME": str(home), "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """`gptctl ui` as a process of its own; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "ui", "--port", "0"], env=environment(home), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait()


def write_step(home: Path, step: int) -> None:
    """A line of metrics, as the mirror gets it from the trainer."""
    (mirror := home / "runs" / "live").mkdir(parents=True, exist_ok=True)
    with (mirror / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 5.0 - step / 100, "tokens": step, "time": step}) + "\n")
    with Ledger.open(home, time.time) as ledger:
        ledger.update_run("live", step=step)


def speed(runs: int) -> Iterator[Figure]:
    """First paint, first row, and how long an update takes from the trainer's write to the page."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with Ledger.open(home, time.time) as ledger:
            for number in range(runs):
                ledger.add_run(RunRecord(f"run-{number}", "quickstart", "local", "2xCPU", float(number)))
                ledger.set_state(f"run-{number}", State.ENDED, outcome=Outcome.FINISHED)
            ledger.add_rental(Rental("own", "local", "local", "2xCPU", time.time()))
            live = RunRecord("live", "quickstart", "local", "2xCPU", time.time(), rental_id="own", total_steps=80)
            ledger.add_run(live)
        write_step(home, 1)
        with serving(home) as address, Browser() as browser:
            begun = time.monotonic()
            shown = browser.open(address)
            until(lambda: browser.evaluate("document.querySelectorAll('#runs > li').length > 8"), 60)
            yield Figure(f"page with {runs:,} runs: rows shown", (time.monotonic() - begun) * 1000, "ms")
            yield within(f"page with {runs:,} runs: first paint", shown.first_paint_ms or 0.0, "ms", 1000)
            browser.evaluate("document.querySelector('[data-run=live]').click()")
            until(lambda: browser.evaluate("document.querySelectorAll('#run .u-wrap').length >= 1"), 60)
            worst = 0.0
            for step in range(2, 7):
                write_step(home, step)
                written = time.monotonic()
                until(lambda step=step: browser.evaluate(f"document.documentElement.dataset.step === '{step}'"), 60)
                worst = max(worst, time.monotonic() - written)
            yield within(f"page with {runs:,} runs: worst of five updates", worst * 1000, "ms", 2000)
            assert shown.complaints == [], shown.complaints


def picture(browser: Browser, address: str, to: Path, width: int, dark: bool) -> None:
    """Light: a run that trains, opened. Dark: the list and the sweep. What a window shows alone: the log at the end
    of a run names this computer's folders."""
    browser.open("about:blank")
    browser.open(address, width=width, height=1180 if width > 600 else 1300, dark=dark)
    until(lambda: browser.evaluate("document.querySelectorAll('.panel').length > 0"), 60)
    if browser.evaluate("document.querySelector('#run').hidden") != dark:
        trains = (
            "[...document.querySelectorAll('#runs [data-run]')].find(each => each.ariaLabel.includes(', training,'))"
        )
        browser.evaluate(f"({trains} ?? document.querySelector('#runs [data-run]')).click()")
    until(lambda: browser.evaluate("document.querySelectorAll('#run .u-wrap').length > 0") != dark, 60)
    at = "window.scrollTo(0, 0)" if dark else "document.querySelector('#run').parentNode.scrollIntoView()"
    browser.evaluate(at)
    path = to / f"live-page-{width}-{'dark' if dark else 'light'}.png"
    browser.picture(path, whole=False)
    with Image.open(path) as drawn:
        few = drawn.convert("RGB").quantize(160)
    few.save(path, optimize=True)


def pictures(to: Path) -> None:
    """Trains a run and a sweep of three arms and two seeds here, and takes pictures while the sweep goes on."""
    with tempfile.TemporaryDirectory() as folder:
        work, home = Path(folder), Path(folder) / "home"
        for name, size_bytes in {"train.bin": 400_000, "val.bin": 40_000}.items():
            write_tokens(work / "tokens" / name, size_bytes)
        text = RECIPE.format(model=SMALL, tokens=300 * 256).replace('"tokens"', f'"{work / "tokens"}"')
        (work / "small.toml").write_text(text)
        (work / "rates.toml").write_text(SWEEP)
        (work / "inventory.toml").write_text('[hosts.local]\nmachine = "1xCPU"\n')
        gptctl = [sys.executable, "-m", "orchestrator"]
        first = ["run", "small.toml", "--host", "local", "--yes", "--name", "a first run"]
        quiet = {"cwd": work, "env": environment(home), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*gptctl, *first], check=True, **quiet)  # type: ignore[call-overload]
        swept = subprocess.Popen([*gptctl, "sweep", "run", "rates.toml", "--host", "local", "--yes"], **quiet)  # type: ignore[call-overload]
        try:
            with serving(home) as address, Browser() as browser:
                judged = (
                    "document.querySelectorAll('.panel .said.better, .panel .said.worse, .panel .said.within').length"
                )
                browser.open(address)
                until(lambda: swept.poll() is not None or browser.evaluate(f"{judged} >= 3"), 900)
                for width, dark in SIZES:
                    picture(browser, address, to, width, dark)
        finally:
            swept.wait()


def main() -> None:
    """What the words say."""
    if sys.argv[1:2] == ["pictures"]:
        pictures(Path(sys.argv[2]))
    else:
        for figure in (each for runs in (1_000, 10_000) for each in speed(runs)):
            print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
