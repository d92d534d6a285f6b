"""The real wandb (offline), trackio and MLflow (a folder of files) keep what the feed gives them. No network.

    pip install wandb trackio mlflow-skinny        # in an environment of its own: they hold back other packages
    python -m tests.bench.track_services           # one line a service: what it kept, and the seconds that it took

It asserts what it prints. The packages are no dependency of the tests: docs/decisions/ says why.
"""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.core.config.settings import Track
from orchestrator.track.feed import Progress, feed
from orchestrator.track.services import TrackedRun, open_service

RUN = TrackedRun("run-1", "first", {"series": "rates"}, {"name": "q", "train": {"seed": 7}})


def write_mirror(folder: Path) -> Path:
    """Three lines of metrics and a validation."""
    folder.mkdir()
    lines = [{"step": step, "time": 100.0 + step, "loss": 5.0 - step / 100} for step in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    validated = {"event": "validated", "step": 20, "val_loss": 4.9, "time": 120.0}
    (folder / "events.jsonl").write_text(json.dumps(validated) + "\n")
    return folder


def of_mlflow(folder: Path) -> str:
    """Every value at its step, and one run after a second start."""
    open_service("mlflow", RUN, Track(to=("mlflow",)), folder).end("finished")
    client = importlib.import_module("mlflow").MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("gptctl").experiment_id])
    losses = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss")]
    (validated,) = client.get_metric_history(run.info.run_id, "val_loss")
    assert (run.info.run_name, run.info.status, run.data.params["train.seed"]) == ("first", "FINISHED", "7")
    assert losses == [(10, 4.9), (20, 4.8), (30, 4.7)] and (validated.step, validated.timestamp) == (20, 120_000)
    assert run.data.tags["label.series"] == "rates"
    return f"one run, {len(losses)} losses, 1 validation"


def of_wandb(folder: Path) -> str:
    """A folder that `wandb sync` takes, and no path or package of this computer in it."""
    (kept,) = (folder / "wandb").glob("offline-run-*/run-run-1.wandb")
    content = kept.read_bytes()
    assert b"val_loss" in content and b"run-1" in content
    assert str(folder).encode() not in content and sys.prefix.encode() not in content
    assert list(kept.parent.joinpath("files").iterdir()) == []
    return f"{kept.name}, {len(content):,} bytes"


def of_trackio(folder: Path) -> str:
    """A database here."""
    with sqlite3.connect(folder / "trackio" / "gptctl.db") as database:
        (rows,) = database.execute("SELECT count(*) FROM metrics").fetchone()
    assert rows == 4, rows
    return f"gptctl.db, {rows} rows"


KEPT: Mapping[str, Callable[[Path], str]] = {"mlflow": of_mlflow, "wandb": of_wandb, "trackio": of_trackio}


def main() -> None:
    """One line a service."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRACKIO_DIR"] = str(folder / "trackio")  # read when it is imported
        mirror = write_mirror(folder / "mirror")
        for service_name, kept in KEPT.items():
            began = time.monotonic()
            settings = Track(to=(service_name,), offline=True)  # type: ignore[arg-type]
            service = open_service(service_name, RUN, settings, folder)
            _, sent = feed(mirror, service, Progress())
            service.end("finished")
            print(f"{service_name:<8} {sent} lines: {kept(folder)}, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
