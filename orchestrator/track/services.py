"""The three services behind one Protocol: the only user of wandb, trackio and MLflow. It reads no files of a run.

A service gets a run's name, labels and recipe as others may see it, never a path of this computer. Each is imported
when it is asked for: none is needed until `[track]` names it.

    with contextlib.closing(open_service("mlflow", tracked, settings)) as service:
        service.log(10, {"loss": 3.2}, 1764480000.0)
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.core.config.settings import Track
from orchestrator.core.errors import ProviderError, UserError

PACKAGES = {"mlflow": "mlflow-skinny"}
"""Of a service whose package has another name; the client alone is enough."""
QUIET = {
    "x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True, "x_save_requirements": False,
    "disable_git": True, "save_code": False, "console": "off",
}  # fmt: skip
"""wandb's settings: of this computer, its folders, packages and screen it gets nothing."""
MOST_PARAMETERS = 100
"""Of one request to MLflow, and characters of a value."""
LONGEST_VALUE = 500


@dataclass(frozen=True)
class TrackedRun:
    """All that a service learns about a run."""

    id: str
    title: str
    labels: Mapping[str, str]
    config: Mapping[str, Any]


class Service(Protocol):
    """A run on a service; the same run again continues it."""

    def log(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Values at a step; `time`: UTC epoch seconds."""

    def end(self, outcome: str | None) -> None:
        """No more comes. outcome None: for now."""


def open_service(name: str, run: TrackedRun, settings: Track, folder: Path) -> Service:
    """folder: where a service that keeps files here puts them. Raises UserError without its package, ProviderError
    where it does not answer."""
    try:
        library = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"[track] names {name}, which is not installed",
            f"{sys.executable} -m pip install {PACKAGES.get(name, name)}",
        ) from error
    opened: Mapping[str, type[Any]] = {"wandb": Wandb, "trackio": Trackio, "mlflow": MLflow}
    where = Translated(name, run.id, (OSError, ValueError, RuntimeError, TypeError, *_own_errors(name, library)))
    with where.translated():
        where.service = opened[name](library, run, settings, folder)
    return where


def _own_errors(name: str, library: Any) -> tuple[type[Exception], ...]:
    return {"wandb": lambda: (library.errors.Error,), "mlflow": lambda: (library.exceptions.MlflowException,)}.get(
        name, tuple
    )()


class Translated:
    """A service whose errors are ours. What it did not get is sent by the next `gptctl track`."""

    service: Service

    def __init__(self, name: str, run_id: str, errors: tuple[type[Exception], ...]) -> None:
        self.name, self.run_id, self.errors = name, run_id, errors

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raises ProviderError for what the service raises."""
        try:
            with redirect_stdout(sys.stderr):  # trackio prints a welcome; stdout is the result
                yield
        except self.errors as error:
            hint = f"gptctl track {self.run_id} sends what is missing"
            raise ProviderError(f"{self.name}: {_without_secrets(error)}", hint) from error

    def log(self, step: int, values: Mapping[str, float], time: float) -> None:
        with self.translated():
            self.service.log(step, values, time)

    def end(self, outcome: str | None) -> None:
        with self.translated():
            self.service.end(outcome)


def _without_secrets(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"[0-9a-f]{32,}", "...", first)[:300]


class Wandb:
    """Steps are a metric of their own, since wandb drops what comes with an earlier step."""

    def __init__(self, library: Any, run: TrackedRun, settings: Track, folder: Path) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        options = library.Settings(**QUIET)
        self.run = library.init(
            project=settings.project, id=run.id, name=run.title, resume="allow", config=dict(run.config),
            dir=str(folder), tags=[f"{key}={value}"[:64] for key, value in run.labels.items()], settings=options,
            mode="offline" if settings.offline else None,
        )  # fmt: skip
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float], time: float) -> None:
        self.run.log({**values, "step": step})

    def end(self, outcome: str | None) -> None:
        if outcome is not None:
            self.run.summary["outcome"] = outcome
        self.run.finish(exit_code=0 if outcome in (None, "finished") else 1)


class Trackio:
    """Keeps a database on this computer; a Space of the Hub only where TRACKIO_SPACE_ID names one."""

    def __init__(self, library: Any, run: TrackedRun, settings: Track, folder: Path) -> None:
        self.library = library
        library.init(
            project=settings.project, name=run.title if run.title == run.id else f"{run.title} ({run.id})",
            resume="allow", config={**run.config, "labels": dict(run.labels)}, embed=False,
            auto_log_cpu=False, auto_log_gpu=False,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float], time: float) -> None:
        self.library.log(dict(values), step=step)

    def end(self, outcome: str | None) -> None:
        self.library.finish()


class MLflow:
    """Finds its run by a tag; the client asks no global state."""

    def __init__(self, library: Any, run: TrackedRun, settings: Track, folder: Path) -> None:
        self.library = library
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.7 asks for it; a database needs SQLAlchemy
        uri = settings.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").as_uri()
        self.client = library.MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name(settings.project)
        at = experiment.experiment_id if experiment else self.client.create_experiment(settings.project)
        known = self.client.search_runs([at], f"tags.`gptctl.run` = '{run.id}'", max_results=1)
        tags = {"gptctl.run": run.id, **{f"label.{key}": value for key, value in run.labels.items()}}
        found = known[0] if known else self.client.create_run(at, run_name=run.title, tags=tags)
        self.id = found.info.run_id
        if not known:
            self._describe(run.config)

    def _describe(self, config: Mapping[str, Any]) -> None:
        every = [self.library.entities.Param(key, str(value)[:LONGEST_VALUE]) for key, value in _flat(config)]
        for start in range(0, len(every), MOST_PARAMETERS):
            self.client.log_batch(self.id, params=every[start : start + MOST_PARAMETERS])

    def log(self, step: int, values: Mapping[str, float], time: float) -> None:
        metric = self.library.entities.Metric
        at_ms = round(time * 1000)
        self.client.log_batch(self.id, metrics=[metric(key, value, at_ms, step) for key, value in values.items()])

    def end(self, outcome: str | None) -> None:
        if outcome is not None:
            self.client.set_terminated(self.id, "FINISHED" if outcome == "finished" else "FAILED")


def _flat(table: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        found += _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else [(f"{before}{key}", value)]
    return found
