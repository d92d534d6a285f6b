"""A run that was killed and resumed is the run that never was: the same losses and weights, bit for bit."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.clock.waiting import until
from tests.support.files.small_runs import TINY
from tests.support.files.training_runs import (
    events,
    last_step,
    losses,
    new_run,
    run_to_end,
    started,
    train_here,
    verdict,
)
from trainer.contract import ModelConfig
from trainer.run_files import CHECKPOINTS, LATEST, METRICS, MODEL_FILE
from trainer.training.metrics import read_lines

DROPOUT = dataclasses.replace(TINY, dropout=0.1)
STEPS = 120


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / CHECKPOINTS / LATEST / MODEL_FILE)
    assert tensors
    return tensors


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def kill_after(folder: Path, step: int, resumes: int = 0) -> None:
    """Kills a training at this step or later, once it has resumed as often as that."""

    def is_there() -> bool:
        return last_step(folder) >= step and len(events(folder, "resumed")) >= resumes

    with started(folder) as process:
        until(lambda: is_there() or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


@pytest.mark.nightly
@pytest.mark.parametrize("kills", [(15,), (15, 37, 61)])
def test_killed_again_and_again_it_ends_bit_for_bit_the_same(tmp_path: Path, kills: tuple[int, ...]) -> None:
    unbroken = new_run(tmp_path / "unbroken", model=DROPOUT, steps=STEPS, grad_clip=1.0)
    train_here(unbroken)
    broken = new_run(tmp_path / "broken", model=DROPOUT, steps=STEPS, grad_clip=1.0)
    for resumes, step in enumerate(kills):
        kill_after(broken, step, resumes)
    assert run_to_end(broken) == 0

    resumed = events(broken, "resumed")
    assert [event["step"] % 10 for event in resumed] == [0] * len(kills)
    assert sorted(event["step"] for event in resumed) == [event["step"] for event in resumed]
    assert resumed[-1]["step"] >= kills[-1] - 11
    assert losses(broken) == losses(unbroken)
    assert_same_weights(broken, unbroken)
    assert verdict(broken)["outcome"] == "finished"


@pytest.mark.parametrize(
    ("model", "train"),
    [
        (DROPOUT, {"optimizer": "muon"}),
        (dataclasses.replace(DROPOUT, tie_embeddings=True, bias=False), {"decay": "all", "schedule": "wsd"}),
        pytest.param(
            DROPOUT,
            {"precision": "bf16", "activation_checkpointing": True, "micro_batch": 2},
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_every_kind_of_state_comes_back(tmp_path: Path, model: ModelConfig, train: dict[str, object]) -> None:
    unbroken = new_run(tmp_path / "unbroken", model=model, steps=30, **train)
    train_here(unbroken)
    broken = tmp_path / "broken"
    shutil.copytree(unbroken, broken, symlinks=True)
    shutil.rmtree(broken / CHECKPOINTS / "step-000030")
    train_here(broken)
    assert [event["step"] for event in events(broken, "resumed")] == [20]
    assert losses(broken) == losses(unbroken)
    assert_same_weights(broken, unbroken)


def test_torn_and_repeated_lines_are_dropped_before_going_on(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=30)
    train_here(folder)
    before = losses(folder)
    shutil.rmtree(folder / CHECKPOINTS / "step-000030")
    for name, torn in ((METRICS, b'{"step": 31, "lo'), ("events.jsonl", bytes(50) + b"\n{}\n")):
        with (folder / name).open("ab") as file:
            file.write(torn)
    train_here(folder)
    assert losses(folder) == before
    assert [line["step"] for line in read_lines(folder / METRICS)] == list(range(1, 31))
    assert [event["step"] for event in events(folder, "finished")] == [30, 30]


def test_a_finished_run_started_again_only_says_so(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=20)
    train_here(folder)
    before = (folder / METRICS).read_bytes()
    assert train_here(folder) == "finished"
    assert (folder / METRICS).read_bytes() == before


def test_another_run_can_be_continued_from_its_checkpoint(tmp_path: Path) -> None:
    first = new_run(tmp_path / "first", steps=20)
    train_here(first)
    longer = new_run(tmp_path / "longer", steps=30, checkpoint_every=5)
    config = json.loads((longer / "config.json").read_text())
    config["resume_from"] = str(first / CHECKPOINTS / LATEST)
    (longer / "config.json").write_text(json.dumps(config))
    train_here(longer)
    assert [event["step"] for event in events(longer, "resumed")] == [20]
    assert sorted(losses(longer)) == list(range(21, 31))

    # Started again, it goes on from its own newest checkpoint, not from the other run's.
    shutil.rmtree(longer / CHECKPOINTS / "step-000030")
    train_here(longer)
    assert events(longer, "resumed")[-1]["step"] == 25
