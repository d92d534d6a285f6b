"""Small real training runs: a config.json, then the trainer in this process or, as users start it, under torchrun."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from tests.support.files.repository import REPOSITORY
from tests.support.files.small_runs import TINY, python_source, write_tokens
from tests.support.machines.sshd import descendants
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig
from trainer.run_files import CONFIG, EVENTS, EXIT, METRICS
from trainer.training.loop import Progress, StopRequest, train
from trainer.training.metrics import Journal, read_lines
from trainer.training.ranks import World
from trainer.training.start import Run

DEADLINE_S = 120
MODULE = ("-m", "trainer")


def small_config(folder: Path, *, model: ModelConfig = TINY, **train: Any) -> RunConfig:
    """A byte model on 60 kB of Python source, 40 steps of 8 sequences; `train` overrides fields of TrainConfig."""
    tokens = folder.parent / "tokens.safetensors"
    if not tokens.exists():
        write_tokens(tokens, python_source(60_000))
    defaults: dict[str, Any] = {
        "steps": 40,
        "global_batch": 8,
        "micro_batch": 4,
        "learning_rate": 3e-3,
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 10,
        "validate_every": 10,
    }
    return RunConfig(
        model=model,
        data=DataConfig(train_files=(str(tokens),), validation_tokens=640, tokenizer="bytes"),
        train=TrainConfig(**{**defaults, **train}),
        device="cpu",
    )


def write_config(folder: Path, config: RunConfig) -> Path:
    """The run folder with its config.json."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(config.to_json())
    return folder


def new_run(folder: Path, **options: Any) -> Path:
    """A run folder ready to be trained, with the options of small_config."""
    return write_config(folder, small_config(folder, **options))


def train_here(folder: Path) -> str:
    """One rank in this process, as `python -m trainer` does it; returns the outcome."""
    torch.set_num_threads(1)
    config = RunConfig.from_json((folder / CONFIG).read_text())
    handler = signal.getsignal(signal.SIGTERM)
    try:
        run = Run(folder, config, World(0, 1, 0, torch.device("cpu")), Journal(folder))
        return train(run, StopRequest(folder), Progress())
    finally:
        signal.signal(signal.SIGTERM, handler)
        gc.enable()
        gc.unfreeze()


def command(folder: Path, ranks: int = 1, program: tuple[str, ...] = MODULE) -> list[str]:
    """How a user starts it."""
    if ranks == 1:
        return [sys.executable, *program, str(folder)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, *program, str(folder)]


@contextmanager
def started(folder: Path, ranks: int = 1, program: tuple[str, ...] = MODULE) -> Iterator[subprocess.Popen[bytes]]:
    """The trainer with all its ranks, gone at the end of the block; its output is in folder/train.log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    with (folder / "train.log").open("ab") as log:
        process = subprocess.Popen(
            command(folder, ranks, program), stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            for pid in [process.pid, *descendants(process.pid)]:  # torchrun's ranks are in sessions of their own
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(DEADLINE_S)


def run_to_end(folder: Path, ranks: int = 1, program: tuple[str, ...] = MODULE) -> int:
    """Trains in processes of their own; returns the exit code."""
    with started(folder, ranks, program) as process:
        return process.wait(DEADLINE_S)


def last_step(folder: Path) -> int:
    """The step of the last complete line of metrics.jsonl; 0 when there is none."""
    lines = read_lines(folder / METRICS)
    return lines[-1]["step"] if lines else 0


def losses(folder: Path) -> dict[int, float]:
    """Loss by step. AssertionError when a step was logged twice."""
    lines = read_lines(folder / METRICS)
    steps = [line["step"] for line in lines]
    assert len(set(steps)) == len(steps), f"logged twice: {steps}"
    return {line["step"]: line["loss"] for line in lines}


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of events.jsonl of this name."""
    return [line for line in read_lines(folder / EVENTS) if line["event"] == name]


def verdict(folder: Path) -> dict[str, Any]:
    """exit.json."""
    value = json.loads((folder / EXIT).read_text())
    assert isinstance(value, dict)
    return value


def with_train(config: RunConfig, **train: Any) -> RunConfig:
    """The config with fields of its [train] replaced."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))
