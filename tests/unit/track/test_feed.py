"""What a service gets of a mirror: every whole line once, also after a kill, and nothing that is not a number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.machines import track
from orchestrator.core.config.settings import Track, load_settings
from orchestrator.core.errors import ProviderError, UserError
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.track import services
from orchestrator.track.feed import Progress, feed

METRIC = {"step": 10, "time": 100.0, "loss": 3.5, "lr": 1e-3, "tokens": 80, "mfu": float("nan"), "grad_norm": None}


class Recorder:
    """A service that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[int, dict[str, float], float]] = []
        self.ended: list[str | None] = []

    def log(self, step: int, values: Any, time: float) -> None:
        self.got.append((step, dict(values), time))

    def end(self, outcome: str | None) -> None:
        self.ended.append(outcome)


def write(mirror: Path, name: str, *records: object, torn: str = "") -> None:
    with (mirror / name).open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records) + torn)


def test_every_whole_line_is_sent_once_and_a_torn_one_when_it_is_whole(tmp_path: Path) -> None:
    service = Recorder()
    write(tmp_path, "metrics.jsonl", METRIC, torn='{"step": 20, "lo')
    write(
        tmp_path, "events.jsonl", {"event": "started", "step": 0}, {"event": "validated", "step": 10, "val_loss": 3.6}
    )
    progress, sent = feed(tmp_path, service, Progress())
    assert sent == 2 and service.got == [
        (10, {"loss": 3.5, "lr": 1e-3, "tokens": 80.0}, 100.0),
        (10, {"val_loss": 3.6}, 0.0),
    ]
    progress.keep(tmp_path, "wandb")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ss": 3.0}\n')
    _, sent = feed(tmp_path, service, Progress.of(tmp_path, "wandb"))
    assert sent == 1 and service.got[-1] == (20, {"loss": 3.0}, 0.0)


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[]",
        "{",
        '{"step": "x", "loss": 1}',
        '{"step": 1}',
        "\x00\x00",
        '{"step": 1, "loss": true}',
        '{"step": 1, "loss": 1' + 400 * "0" + "}",
    ],
)
def test_what_a_machine_writes_breaks_nothing(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    progress, sent = feed(tmp_path, Recorder(), Progress())
    assert sent == 0 and progress.metrics == len(line) + 1


@pytest.mark.parametrize("content", ["", "{", '{"metrics": "much"}'])
def test_a_damaged_mark_begins_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "track-mlflow.json").write_text(content)
    assert Progress.of(tmp_path, "mlflow") == Progress()


@pytest.fixture
def home(gptctl_home: Path) -> Path:
    gptctl_home.mkdir()
    with Ledger.open(gptctl_home, lambda: 1.0) as ledger:
        data = {"name": "q", "data": {"source": "/home/ann/secret-thesis/corpus.txt"}}
        ledger.add_run(RunRecord("run-1", "q", "local", "2xCPU", 1.0, name="first", recipe_data=data))
        ledger.set_state("run-1", State.ENDED, outcome=Outcome.FINISHED)
    (gptctl_home / "config.toml").write_text('[track]\nto = ["wandb", "mlflow"]\n')
    (mirror := gptctl_home / "runs" / "run-1").mkdir(parents=True)
    write(mirror, "metrics.jsonl", METRIC)
    return gptctl_home


def test_a_service_that_is_down_keeps_no_other_from_its_lines(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, services.TrackedRun] = {}
    alive = Recorder()

    def opened(name: str, run: services.TrackedRun, settings: Track, folder: Path) -> Recorder:
        told[name] = run
        if name == "wandb":
            raise ProviderError("wandb: no network", "gptctl track run-1 sends what is missing")
        return alive

    monkeypatch.setattr(track, "open_service", opened)
    with pytest.raises(ProviderError, match="no network"):
        track.track("run-1", follow=True)
    assert capsys.readouterr().out == "mlflow: 1 lines of run-1\n"
    assert len(alive.got) == 1 and alive.ended == ["finished"]
    assert told["mlflow"].title == "first" and "secret-thesis" not in json.dumps(told["mlflow"].config)
    assert Progress.of(home / "runs" / "run-1", "wandb") == Progress()


def test_it_is_off_unless_config_toml_names_a_service(gptctl_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gptctl_home.mkdir()
    monkeypatch.setattr(track.subprocess, "Popen", None)
    track.start_tracking(gptctl_home, "run-1")
    (gptctl_home / "config.toml").write_text("[limits]\n")
    track.start_tracking(gptctl_home, "run-1")
    assert load_settings(gptctl_home).track == Track()
    with pytest.raises(UserError, match=r"\[track\]"):
        track.track(None, follow=False)


def test_a_package_that_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(services.importlib, "import_module", missing)
    with pytest.raises(UserError, match="which is not installed"):
        services.open_service("trackio", services.TrackedRun("r", "r", {}, {}), Track(), tmp_path)
