"""Bad input: each ends the program with code 1, one exit.json, and a reason that names what to change."""

import dataclasses
import gc
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.files.small_runs import TINY, write_run, write_tokens
from tests.support.files.training_runs import (
    events,
    last_step,
    losses,
    new_run,
    run_to_end,
    small_config,
    train_here,
    verdict,
    write_config,
)
from trainer.__main__ import USAGE, ExitFile, main
from trainer.checkpoints.checkpoint import write_manifest
from trainer.checkpoints.manifest import CheckpointError, read_manifest
from trainer.contract import ModelConfig, RunConfig
from trainer.model.precision import LossScaler
from trainer.run_files import CHECKPOINTS, CONFIG, EXIT, STOP, TRAINER_STATE_FILE
from trainer.training import loop
from trainer.training.failures import nonfinite_words
from trainer.training.loop import Progress


def changed(folder: Path, section: str, **fields: Any) -> None:
    """config.json with keys replaced or added in one of its tables (or, for "", at the top level)."""
    config = json.loads((folder / CONFIG).read_text())
    (config[section] if section else config).update(fields)
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """main() is meant to own its process: it freezes the garbage collector and answers SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    gc.enable()
    gc.unfreeze()


def unknown_key(folder: Path) -> None:
    changed(folder, "train", global_bach=8)


def no_json(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def no_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def batch_that_does_not_divide(folder: Path) -> None:
    changed(folder, "train", global_batch=10, micro_batch=4)


def no_token_file(folder: Path) -> None:
    changed(folder, "data", train_files=["/nowhere/train.bin"])


def truncated_token_file(folder: Path) -> None:
    path = write_tokens(folder / "cut.safetensors", b"abc" * 1000)
    path.write_bytes(path.read_bytes()[:-9])
    changed(folder, "data", train_files=[str(path)])


def id_beyond_the_vocabulary(folder: Path) -> None:
    path = write_tokens(folder / "gpt2.safetensors", [*range(200), 50256] * 20)
    changed(folder, "data", train_files=[str(path)])


def resume_from_nothing(folder: Path) -> None:
    changed(folder, "", resume_from=str(folder))


def resume_from_weights_only(folder: Path) -> None:
    checkpoint = write_run(folder / "other")
    files = read_manifest(checkpoint)
    del files[TRAINER_STATE_FILE]
    write_manifest(checkpoint, files)
    (checkpoint / TRAINER_STATE_FILE).unlink()
    changed(folder, "", resume_from=str(checkpoint))


def resume_from_another_shape(folder: Path) -> None:
    write_run(folder / "other", dataclasses.replace(TINY, n_embd=64))
    changed(folder, "", resume_from=str(folder / "other"))


class Foreign:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("false",)


def resume_from_a_foreign_pickle(folder: Path) -> None:
    """Its manifest fits: whoever made the pickle could make that too."""
    checkpoint = write_run(folder / "other")
    torch.save({"optimizer": Foreign()}, checkpoint / TRAINER_STATE_FILE)
    files = read_manifest(checkpoint)
    content = (checkpoint / TRAINER_STATE_FILE).read_bytes()
    files[TRAINER_STATE_FILE] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(checkpoint, files)
    changed(folder, "", resume_from=str(checkpoint))


def unknown_optimizer(folder: Path) -> None:
    changed(folder, "train", optimizer="adam")


def unknown_precision(folder: Path) -> None:
    changed(folder, "train", precision="bf61")


def unknown_schedule(folder: Path) -> None:
    changed(folder, "train", schedule="cosinus", warmup_fraction=1.0)


def no_steps(folder: Path) -> None:
    changed(folder, "train", steps=0)


def interval_of_zero(folder: Path) -> None:
    changed(folder, "train", checkpoint_every=0)


def heads_that_do_not_divide(folder: Path) -> None:
    changed(folder, "model", n_head=3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unknown_key, "config.json: unknown key train.global_bach (did you mean global_batch?)"),
        (no_json, "config.json is not JSON"),
        (no_config, "No such file"),
        (batch_that_does_not_divide, "a global batch of 10 does not divide"),
        (no_token_file, "/nowhere/train.bin: cannot be read"),
        (truncated_token_file, "cut.safetensors is truncated or damaged"),
        (id_beyond_the_vocabulary, "gpt2.safetensors: token 200 has id 50256, but the vocabulary has 257 ids"),
        (resume_from_nothing, "neither a checkpoint (MANIFEST.json in it) nor a run folder"),
        (resume_from_weights_only, "holds weights only"),
        (resume_from_another_shape, "does not fit the model of config.json: tensor"),
        (resume_from_a_foreign_pickle, "trainer_state.pt is refused"),
        (unknown_optimizer, "train.optimizer must be adamw or muon, got 'adam'"),
        (unknown_precision, "train.precision must be bf16, fp16 or fp32, got 'bf61'"),
        (unknown_schedule, "train.schedule must be constant, cosine, linear or wsd, got 'cosinus'"),
        (no_steps, "train.steps must be at least 1, got 0"),
        (interval_of_zero, "train.checkpoint_every must be at least 1, got 0"),
        (heads_that_do_not_divide, "n_embd 32 is not divisible by model.n_head 3"),
    ],
)
def test_bad_input_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], message: str
) -> None:
    folder = new_run(tmp_path / "run", steps=5)
    (folder / EXIT).write_text('{"outcome": "finished"}')  # of an earlier start
    spoil(folder)
    monkeypatch.setattr(sys, "argv", ["trainer", str(folder)])
    with pytest.raises(SystemExit, match=r"^trainer: "):
        main()
    assert verdict(folder)["outcome"] == "failed"
    assert message in verdict(folder)["reason"]
    assert verdict(folder)["step"] == 0
    assert message in events(folder, "failed")[-1]["reason"]
    assert not list(folder.glob(".tmp-*"))


def test_the_program_prints_one_line_for_an_error_of_ours(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    unknown_key(folder)
    assert run_to_end(folder) == 1
    log = (folder / "train.log").read_text()
    assert "did you mean global_batch?" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("arguments", [[], ["/nowhere"], ["a", "b"]])
def test_without_a_run_folder_it_shows_its_usage(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == USAGE


@pytest.mark.parametrize(("exit_json", "outcome", "steps"), [(True, "finished", 5), (False, "stopped", 1)])
def test_a_stop_file_counts_unless_it_is_of_an_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_json: bool, outcome: str, steps: int
) -> None:
    folder = new_run(tmp_path / "run", steps=5)
    (folder / STOP).touch()
    if exit_json:
        (folder / EXIT).write_text('{"outcome": "stopped"}')
    monkeypatch.setattr(sys, "argv", ["trainer", str(folder)])
    main()
    assert (verdict(folder)["outcome"], last_step(folder)) == (outcome, steps)
    assert not (folder / STOP).exists()


def test_the_first_rank_to_fail_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(step=7, total_steps=9)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="the cause"), ExitFile(tmp_path, progress):
        raise ValueError("the cause")
    late = ExitFile(tmp_path, progress)
    assert not late.write("failed", "its echo")
    assert verdict(tmp_path)["reason"] == "rank 1: ValueError: the cause"
    assert (verdict(tmp_path)["step"], verdict(tmp_path)["total_steps"]) == (7, 9)
    assert len(events(tmp_path, "failed")) == 1


def test_a_damaged_checkpoint_is_passed_over_by_a_run_and_said(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=30)
    train_here(folder)
    model = folder / CHECKPOINTS / "step-000030" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[5000] ^= 1
    model.write_bytes(content)
    assert train_here(folder) == "finished"
    resumed = events(folder, "resumed")[-1]
    assert resumed["step"] == 20
    assert "step-000030: model.safetensors does not have the sha256 of its manifest" in resumed["reason"]


def test_when_no_checkpoint_is_whole_it_starts_over_and_says_so(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=10)
    train_here(folder)
    before = (folder / "metrics.jsonl").read_text()
    shutil.rmtree(folder / CHECKPOINTS / "step-000010" / ".", ignore_errors=True)
    (folder / CHECKPOINTS / "step-000010").mkdir(exist_ok=True)
    train_here(folder)
    (warning,) = events(folder, "warning")
    assert "no checkpoint verifies (step-000010: no readable MANIFEST.json" in warning["reason"]
    assert [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [
        json.loads(line)["loss"] for line in before.splitlines()
    ]


def test_a_disk_that_is_full_during_a_run_costs_checkpoints_not_the_run(small_disk: Path) -> None:
    folder = small_disk / "run"
    config = small_config(folder, steps=40, checkpoint_every=10)
    folder.mkdir()
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - 200_000))
    with pytest.raises(CheckpointError, match=r"step 40 not written: No space left on device.*: free space below"):
        train_here(write_config(folder, config))
    warned = [event["step"] for event in events(folder, "warning") if "not written" in event["reason"]]
    assert warned == [10, 20, 30, 40]
    assert "No space left" in events(folder, "warning")[0]["reason"]

    (small_disk / "ballast").unlink()
    write_config(folder, RunConfig(**{**config.__dict__, "train": dataclasses.replace(config.train, steps=10)}))
    assert train_here(folder) == "finished"
    assert [event["step"] for event in events(folder, "checkpointed")] == [10]


FAILING_CARD = [
    (
        3,
        "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously ...",
        "is damaged",
    ),
    (3, "CUDA error: unspecified launch failure\nFor debugging consider passing ...", "dmesg | grep Xid tells which"),
    (1, "NCCL error in: x.cpp:1, unhandled cuda error (run with NCCL_DEBUG=INFO)", "the link between cards failed"),
]


@pytest.mark.parametrize(("step", "error", "cure"), FAILING_CARD)
def test_a_card_that_fails_in_a_step_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: str, cure: str
) -> None:
    folder, train_step, taken = new_run(tmp_path / "run", steps=5), loop.train_step, 0

    def failing(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == step:
            raise RuntimeError(error)
        return train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", failing)
    monkeypatch.setattr(sys, "argv", ["trainer", str(folder)])
    with pytest.raises(RuntimeError):
        main()
    reason = verdict(folder)["reason"]
    assert reason.startswith(f"rank 0: RuntimeError: {error.splitlines()[0]}: ")
    assert cure in reason and "asynchronously" not in reason
    assert verdict(folder)["step"] == step - 1


def test_fp16_that_overflows_at_once_is_told_to_take_bf16() -> None:
    scaler = LossScaler(torch.device("cpu"), enabled=True, init_scale=64.0)
    words = nonfinite_words(10, 10, scaler)
    assert re.search(r'10 steps in a row up to step 10.* scaled by no more than 64\. .*"bf16"', words)


@pytest.mark.parametrize(("vocabulary", "dtype"), [(257, "uint16"), (65_537, "uint32"), (200_000, "uint32")])
def test_a_vocabulary_of_any_size_trains_and_is_evaluated(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    folder = tmp_path / "run"
    tokens = (np.arange(4_000) * 7919 % vocabulary).astype(dtype)
    tokens[-1] = vocabulary - 1
    tokens.tofile(tmp_path / "tokens.bin")
    model = ModelConfig(vocab_size=vocabulary, context_length=32, n_layer=1, n_head=1, n_embd=8)
    config = small_config(folder, model=model, steps=2, global_batch=2, micro_batch=2, validate_every=2)
    data = dataclasses.replace(config.data, train_files=(str(tmp_path / "tokens.bin"),), dtype=dtype)
    assert train_here(write_config(folder, dataclasses.replace(config, data=data))) == "finished"
    assert losses(folder)[1] == pytest.approx(math.log(vocabulary), abs=0.1)
