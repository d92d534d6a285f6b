"""The eight tables as text, at several widths: what a person sees of them. Nothing is asked and nothing is spent.

python -m tests.bench.table_pictures              # at 60, 80 and 120 columns
python -m tests.bench.table_pictures 100
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.cli.machines import orphans
from orchestrator.core.fleet.orphans import Orphan
from orchestrator.core.states import Outcome, Seen, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord

WIDTHS = (60, 80, 120)
COMMANDS = (
    "status", "plan quickstart --offline", "offers --offline --gpu a100", "orphans", "hosts --offline", "cost",
    "compare quickstart-1130-0 quickstart-1130-1 quickstart-1130-2", "check",
)  # fmt: skip
MACHINES = (
    Orphan("ec2", "i-0c1d2e3f4a5b6c7d8", "8xa100-40gb-1130-x7rt2m", "8xA100-40GB", "running", 7000, 15.92, 30.96, None,
           True, True, True),
    Orphan("ec2", "i-0aa11bb22cc33dd44", "1xh100-1130-p0q9r8", "1xH100", "booting", 120, 4.29, 0.14, 1.8e9, True,
           False, False),
)  # fmt: skip
INVENTORY = """
[hosts.home-3090]
provider = "ssh"
machine = "1x3090"
address = "192.0.2.20"
user = "me"
ssh_key = "~/.ssh/home"
price_per_hour_usd = 0.11
"""


def fill(home: Path) -> None:
    """Three runs that ended on a machine of your own, and one that trains."""
    now = time.time()
    with Ledger.open(home, time.time) as ledger:
        ledger.add_rental(Rental("own", "ssh", "home-3090", "1x3090", now - 9000, price_per_hour_usd=0.11))
        for number, name in enumerate(("baseline", "qkv-bias", "weight-tying", None)):
            run = RunRecord(
                f"quickstart-1130-{number}k3f9q", "quickstart", "home-3090", "1x3090", now - 8000 + number, name=name,
                rental_id="own", total_steps=800,
            )  # fmt: skip
            ledger.add_run(run)
            step, loss = (800, 2.31 - number / 50) if name else (420, 2.9)
            ledger.update_run(
                run.id, step=step, loss=loss, val_loss=loss + 0.04, tokens_per_second=19_800.0, mfu=0.27,
                eta_s=None if name else 640.0, seen=Seen.LIVE, seen_at=now - 4, seen_via="ssh",
            )  # fmt: skip
            if name:
                ledger.close_stage(ledger.open_stage(run.id, "own", "follow", 0.11), now + 1900 + number)
                ledger.set_state(run.id, State.ENDED, outcome=Outcome.FINISHED)
            else:
                ledger.open_stage(run.id, "own", "follow", 0.11)
                ledger.set_state(run.id, State.TRAINING)


def machines(width: int) -> str:
    """The table of `orphans`, which no account can show here, and the commands below it."""
    out = io.StringIO()
    os.environ["COLUMNS"] = str(width)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        orphans._print_rows(orphans.Sight(0.0, [], {}, {"lambda": None}), MACHINES, ())  # type: ignore[dict-item]
    return out.getvalue()


def main() -> None:
    """Prints each table at each width."""
    widths = [int(each) for each in sys.argv[1:]] or list(WIDTHS)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        fill(home)
        (Path(folder) / "inventory.toml").write_text(INVENTORY)
        own = {"GPTCTL_HOME": str(home), "NO_COLOR": "1", "PYTHONPATH": os.getcwd()}
        for words, width in itertools.product(COMMANDS, widths):
            if words == "orphans":
                print(f"\n== gptctl {words}   at {width} columns ==\n{machines(width)}", flush=True)
                continue
            done = subprocess.run(
                [sys.executable, "-m", "orchestrator", *words.split()], cwd=folder, capture_output=True, text=True,
                env={**os.environ, **own, "COLUMNS": str(width)}, check=False,
            )  # fmt: skip
            shown = (done.stdout + done.stderr).replace(folder, "~")
            print(f"\n== gptctl {words}   at {width} columns ==\n{shown}", flush=True)


if __name__ == "__main__":
    main()
