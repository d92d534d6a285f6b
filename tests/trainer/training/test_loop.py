"""A whole run on one rank: it learns, logs what the contract says, validates and saves, and explains its end."""

import dataclasses
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.support.clock.waiting import until
from tests.support.files.small_runs import TINY
from tests.support.files.training_runs import (
    events,
    last_step,
    losses,
    new_run,
    run_to_end,
    small_config,
    started,
    train_here,
    verdict,
    write_config,
)
from trainer.checkpoints.checkpoint import find_newest
from trainer.checkpoints.manifest import read_meta
from trainer.contract import TrainConfig
from trainer.model.block import Shared
from trainer.model.gpt import GPT
from trainer.model.precision import choose_precision
from trainer.run_files import CHECKPOINTS, METRIC_KEYS, METRICS, STOP
from trainer.tokens.batches import Share, open_data, prefetched
from trainer.training.compile_check import compile_fault
from trainer.training.loop import TrainingError, seed_step, train_step
from trainer.training.metrics import Journal, PartClock, StepCounts, Window, read_lines
from trainer.training.ranks import World
from trainer.training.start import Engine, Run, prepare

CPU = torch.device("cpu")


def test_a_run_learns_and_leaves_everything_the_contract_promises(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = small_config(folder, steps=60, log_every=7, validate_every=20, checkpoint_every=25, precision="bf16")
    config = dataclasses.replace(config, prompts=("def ", ""), peak_flops_per_gpu=1e12)
    assert train_here(write_config(folder, config)) == "finished"

    lines = read_lines(folder / METRICS)
    assert [line["step"] for line in lines] == [1, *range(7, 60, 7), 60]
    assert all(set(METRIC_KEYS) <= line.keys() for line in lines)
    assert [line["tokens"] for line in lines] == [line["step"] * 8 * 32 for line in lines]
    assert lines[0]["loss"] == pytest.approx(math.log(257), rel=0.02)
    assert lines[-1]["loss"] < 3.5
    assert all(0 < line["mfu"] < 1 and line["tokens_per_second"] > 0 and line["memory_gib"] > 0 for line in lines)
    assert {"data", "forward_backward", "optimizer"} <= lines[-1]["seconds"].keys()

    validated = {event["step"]: event["val_loss"] for event in events(folder, "validated")}
    assert list(validated) == [20, 40, 60]
    assert validated[60] < validated[20] < math.log(257)
    assert [event["step"] for event in events(folder, "checkpointed")] == [25, 50, 60]
    assert [event["prompt"] for event in events(folder, "sampled")] == ["def ", ""]
    assert events(folder, "sampled")[0]["text"].startswith("def ")
    assert events(folder, "started")[0]["parameters"] == GPT(TINY).parameter_count()
    before_the_first_step = [event["doing"] for event in events(folder, "preparing")]
    assert before_the_first_step == ["opening the data", "building the model", "waiting for the first batch"]
    assert [event["step"] for event in events(folder, "finished")] == [60]
    meta = read_meta(folder / CHECKPOINTS / "best")
    assert (meta["step"], meta["val_loss"], meta["tokenizer"]) == (60, validated[60], "bytes")
    assert meta["model"] == dataclasses.asdict(TINY)


def test_the_clip_the_norm_and_the_share_of_clipped_steps_are_told(tmp_path: Path) -> None:
    free = new_run(tmp_path / "free", steps=12, log_every=4)
    tight = new_run(tmp_path / "tight", steps=12, log_every=4, grad_clip=1e-3)
    train_here(free)
    train_here(tight)
    first, second = read_lines(free / METRICS), read_lines(tight / METRICS)
    assert first[0]["grad_norm"] == second[0]["grad_norm"] > 0.5
    assert {line["clipped_share"] for line in first} == {0.0}
    assert {line["clipped_share"] for line in second} == {1.0}


def engine_of(tmp_path: Path, **train: object) -> tuple[Engine, World, Run]:
    config = small_config(tmp_path / "run", **train)
    world = World(0, 1, 0, CPU)
    run = Run(tmp_path / "run", config, world, Journal(tmp_path, enabled=False))
    engine, _ = prepare(run, open_data(config), Share(8, 1))
    return engine, world, run


def test_one_bad_gradient_is_skipped_counted_and_forgotten(tmp_path: Path) -> None:
    engine, world, run = engine_of(tmp_path)
    batches = prefetched(open_data(run.config), range(3), Share(8, 1), CPU)
    counts, clock = StepCounts.zeros(CPU), PartClock(CPU)
    train_step(engine, batches, 1e-3, counts, clock)
    before = {name: tensor.clone() for name, tensor in engine.model.unpadded_state().items()}
    poison = engine.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    train_step(engine, batches, 1e-3, counts, clock)
    poison.remove()
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.model.unpadded_state().items())
    loss, norm = train_step(engine, batches, 1e-3, counts, clock)
    assert any(not torch.equal(before[name], tensor) for name, tensor in engine.model.unpadded_state().items())
    window = Window(run.config, world, 0)
    noted = window.note(3, loss, norm, 1e-3, counts, stop=False)
    reading = window.read(noted)
    assert window.line(noted, reading, 5.0)["skipped_steps"] == 1
    assert (reading.loss, reading.longest_streak, float(counts.streak)) == (float(loss), 1, 0.0)
    batches.close()


def test_gradients_that_stay_non_finite_fail_the_run_with_advice(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", learning_rate=1e30, warmup_fraction=0.0, max_nonfinite_steps=5)
    with pytest.raises(
        TrainingError, match=r"not finite in 5 steps in a row up to step [67], all skipped.*learning_rate"
    ):
        train_here(folder)
    assert last_step(folder) < 10
    lines = read_lines(folder / METRICS)
    assert lines[-1]["loss"] is None  # NaN is no JSON
    assert lines[-1]["skipped_steps"] == 5


def test_dropouts_seed_is_its_steps_and_ranks_own() -> None:
    draws = {}
    for step in (0, 1):
        for rank in (0, 1):
            seed_step(42, step, rank)
            draws[step, rank] = float(torch.rand(1))
    assert len(set(draws.values())) == 4
    seed_step(42, 1, 0)
    assert float(torch.rand(1)) == draws[1, 0]


@pytest.mark.parametrize("how", ["signal", pytest.param("file", marks=pytest.mark.nightly)])
def test_asked_to_stop_it_saves_and_exits_cleanly_and_can_go_on(tmp_path: Path, how: str) -> None:
    folder = new_run(tmp_path / "run", steps=100_000, checkpoint_every=50_000, validate_every=50_000)
    with started(folder) as process:
        until(lambda: last_step(folder) > 5)
        if how == "signal":
            os.kill(process.pid, signal.SIGTERM)
        else:
            (folder / STOP).touch()
        assert process.wait(240) == 0
    stopped = verdict(folder)
    assert stopped["outcome"] == "stopped"
    assert stopped["total_steps"] == 100_000
    assert find_newest(folder).step == stopped["step"] == last_step(folder) > 5
    assert [event["step"] for event in events(folder, "stopped")] == [stopped["step"]]
    assert not (folder / STOP).exists()

    write_config(folder, small_config(folder, steps=stopped["step"] + 3))
    assert train_here(folder) == "finished"
    assert list(losses(folder)) == list(range(1, stopped["step"] + 4))


@pytest.mark.nightly
def test_sigusr1_shows_what_every_thread_does_and_training_goes_on(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=100_000)
    with started(folder) as process:
        until(lambda: last_step(folder) > 5)
        os.kill(process.pid, signal.SIGUSR1)
        until(lambda: "most recent call first" in (folder / "train.log").read_text(errors="replace"))
        before = last_step(folder)
        until(lambda: last_step(folder) > before + 5)
    assert "loop.py" in (folder / "train.log").read_text(errors="replace")


@pytest.mark.parametrize(
    ("wanted", "dtype", "remark"),
    [("fp32", None, ""), ("bf16", torch.bfloat16, ""), ("fp16", torch.bfloat16, "fp16 needs a GPU")],
)
def test_precisions_on_a_cpu(wanted: str, dtype: torch.dtype | None, remark: str) -> None:
    chosen, reason = choose_precision(wanted, CPU)
    assert chosen == dtype
    assert reason.startswith(remark)
    assert bool(reason) == bool(remark)


@pytest.mark.nightly
def test_a_compiler_that_fails_leaves_the_run_eager_with_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No C++ compiler on the machine: inductor cannot build anything.
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "absent-compiler")
    compiled = new_run(tmp_path / "compiled", steps=10, compile=True)
    eager = new_run(tmp_path / "eager", steps=10, compile=False)
    assert run_to_end(compiled) == 0
    monkeypatch.undo()
    train_here(eager)
    (warning,) = events(compiled, "warning")
    assert warning["reason"].startswith("training uncompiled: torch.compile fails: ")
    assert losses(compiled) == losses(eager)


def test_a_compiled_part_that_computes_nonsense_is_found_out(tmp_path: Path) -> None:
    engine, _, run = engine_of(tmp_path)
    data = open_data(run.config)
    batches = [data.micro_batch(step, 0, 8) for step in range(5)]
    model = engine.model
    before = {name: tensor.clone() for name, tensor in model.unpadded_state().items()}

    class Miscompiled(GPT):
        def compile_parts(self, enabled: bool) -> None:
            super().compile_parts(False)
            if enabled:

                def run(
                    block: torch.nn.Module, x: torch.Tensor, shared: Shared
                ) -> tuple[torch.Tensor, torch.Tensor | None]:
                    after, values = block(x, shared=shared)
                    return after * (math.nan if broken else 1.0), values

                self._run_block = run

    model.__class__ = Miscompiled
    broken = False
    assert compile_fault(model, batches, engine.autocast) is None
    broken = True
    reason = compile_fault(model, batches, engine.autocast)
    assert reason is not None
    assert reason.startswith("compiled loss nan at canary step 1, eager 5.5")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.unpadded_state().items())


def test_lines_wait_for_a_full_disk_and_none_is_torn(small_disk: Path) -> None:
    journal = Journal(small_disk)
    journal.event("warning", 1, reason="first")
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))
    for number in range(100):
        journal.metrics({"step": number, "note": "x" * 100})
    assert len(read_lines(small_disk / METRICS)) < 100
    (small_disk / "ballast").unlink()
    journal.metrics({"step": 100})
    assert [line["step"] for line in read_lines(small_disk / METRICS)] == list(range(101))


def test_a_reader_of_the_log_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=10)
    read_end, write_end = os.pipe()
    os.close(read_end)
    saved = os.dup(1)
    try:
        os.dup2(write_end, 1)
        assert train_here(folder) == "finished"
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(write_end)
    assert last_step(folder) == 10


def test_defaults_validate_and_save_together() -> None:
    train = TrainConfig()
    assert train.validate_every == train.checkpoint_every  # best is chosen among validated checkpoints
