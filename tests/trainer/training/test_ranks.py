"""Several ranks: the same tokens and losses however the batch is cut, and one end for all when one of them fails."""

import dataclasses
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

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
from tests.support.machines.sshd import descendants
from trainer.run_files import CHECKPOINTS, STOP
from trainer.tokens.batches import Share, open_data, prefetched
from trainer.training.loop import train_step
from trainer.training.metrics import Journal, PartClock, StepCounts
from trainer.training.ranks import World, leader_first
from trainer.training.start import Run, prepare

STEPS = 20


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps by one rank, the whole batch at once."""
    folder = new_run(tmp_path_factory.mktemp("ranks") / "one", steps=STEPS, micro_batch=8)
    assert train_here(folder) == "finished"
    return folder


RANKS_AT_NIGHT = [pytest.param(2, 1, marks=pytest.mark.nightly), pytest.param(4, 2, marks=pytest.mark.nightly)]


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 2), *RANKS_AT_NIGHT])
def test_any_split_of_the_batch_gives_the_same_losses(one_rank: Path, ranks: int, micro_batch: int) -> None:
    folder = new_run(one_rank.parent / f"{ranks}x{micro_batch}", steps=STEPS, micro_batch=micro_batch)
    assert train_here(folder) == "finished" if ranks == 1 else run_to_end(folder, ranks) == 0
    expected, got = losses(one_rank), losses(folder)
    assert list(got) == list(expected) == list(range(1, STEPS + 1))
    assert got == pytest.approx(expected, rel=1e-5)
    assert expected[STEPS] < expected[1] - 0.5
    validated = [[event["val_loss"] for event in events(run, "validated")] for run in (one_rank, folder)]
    assert validated[1] == pytest.approx(validated[0], rel=1e-5)


@pytest.mark.nightly
def test_experts_train_alike_on_one_rank_and_two_and_resume(tmp_path: Path) -> None:
    """Balance is of each micro-batch, so it would differ with the cut; without it everything else has to agree."""
    found = []
    for ranks, micro_batch in ((1, 8), (2, 1)):
        folder = new_run(tmp_path / str(ranks), steps=STEPS, micro_batch=micro_batch)
        config = small_config(folder, steps=STEPS, micro_batch=micro_batch)
        model = dataclasses.replace(config.model, experts=4, active_experts=1, balance_loss=0.0, embedding_rank=8)
        write_config(folder, dataclasses.replace(config, model=model))
        assert (train_here(folder) == "finished") if ranks == 1 else (run_to_end(folder, ranks) == 0)
        found.append(losses(folder))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    shutil.rmtree(tmp_path / "2" / CHECKPOINTS / "step-000020")
    assert run_to_end(tmp_path / "2", ranks=2) == 0
    assert losses(tmp_path / "2") == pytest.approx(found[1], rel=1e-6)


@pytest.mark.nightly
def test_a_checkpoint_of_one_rank_goes_on_with_two(one_rank: Path) -> None:
    folder = one_rank.parent / "one-then-two"
    shutil.copytree(one_rank, folder, symlinks=True)
    config = dataclasses.replace(small_config(folder, steps=STEPS, micro_batch=2))
    write_config(folder, config)
    shutil.rmtree(folder / CHECKPOINTS / "step-000020")
    assert run_to_end(folder, ranks=2) == 0
    assert [event["step"] for event in events(folder, "resumed")] == [10]
    assert losses(folder) == pytest.approx(losses(one_rank), abs=1e-4)


@pytest.mark.nightly
def test_muon_dealt_over_two_ranks_goes_on_where_one_rank_stopped(tmp_path: Path) -> None:
    alone = new_run(tmp_path / "one", steps=STEPS, micro_batch=8, optimizer="muon", split_qkv=True)
    train_here(alone)
    folder = tmp_path / "two"
    shutil.copytree(alone, folder, symlinks=True)
    write_config(folder, small_config(folder, steps=STEPS, micro_batch=2, optimizer="muon", split_qkv=True))
    shutil.rmtree(folder / CHECKPOINTS / "step-000020")
    assert run_to_end(folder, ranks=2) == 0
    assert [event["step"] for event in events(folder, "resumed")] == [10]
    assert losses(folder) == pytest.approx(losses(alone), abs=1e-4)


def test_each_bucket_is_reduced_once_per_step(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", micro_batch=1, global_batch=4)
    share = Share(1, 4)
    data = open_data(config)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        run = Run(tmp_path / "run", config, World(0, 1, 0, torch.device("cpu")), Journal(tmp_path, enabled=False))
        engine, _ = prepare(run, data, share)
        wrapped = DistributedDataParallel(engine.model, gradient_as_bucket_view=True, bucket_cap_mb=0.05)
        engine = dataclasses.replace(engine, parallel=wrapped)
        reduced: list[tuple[int, int]] = []

        def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            reduced.append((bucket.index(), bucket.buffer().numel()))
            future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, count)
        batches = prefetched(data, range(3), share, torch.device("cpu"))
        parameters = sum(parameter.numel() for parameter in engine.model.parameters())
        for _ in range(3):
            reduced.clear()
            train_step(engine, batches, 1e-3, StepCounts.zeros(torch.device("cpu")), PartClock(torch.device("cpu")))
            indices = [index for index, _ in reduced]
            assert sorted(indices) == sorted(set(indices))
            assert sum(size for _, size in reduced) == parameters
        assert len(reduced) > 1
        batches.close()
    finally:
        dist.destroy_process_group()


def rank_processes(launcher: int) -> list[int]:
    """The ranks below torchrun, in the order they were started."""
    ranks = []
    for pid in descendants(launcher):
        with suppress(OSError):  # a helper of torch that has ended meanwhile
            ranks += [pid] if b"-m\0trainer" in Path(f"/proc/{pid}/cmdline").read_bytes() else []
    return sorted(ranks)


@pytest.mark.nightly
def test_a_killed_rank_ends_the_run_with_the_cause(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=100_000, micro_batch=2, checkpoint_every=10)
    with started(folder, ranks=2) as process:
        until(lambda: last_step(folder) > 15)
        os.kill(rank_processes(process.pid)[1], signal.SIGKILL)
        assert process.wait(240) != 0
    assert verdict(folder)["outcome"] == "failed"
    assert "rank 0: lost another rank, killed or frozen" in verdict(folder)["reason"]
    assert verdict(folder)["step"] >= 15
    assert events(folder, "failed")[-1]["reason"] == verdict(folder)["reason"]


@pytest.mark.nightly
def test_a_frozen_rank_ends_the_run_after_the_timeout(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=100_000, micro_batch=2, process_group_timeout_s=3.0)
    with started(folder, ranks=2) as process:
        until(lambda: last_step(folder) > 10)
        os.kill(rank_processes(process.pid)[1], signal.SIGSTOP)
        until((folder / "exit.json").exists)
        assert verdict(folder)["outcome"] == "failed"
        assert "lost another rank, killed or frozen" in verdict(folder)["reason"]


@pytest.mark.nightly
def test_sigterm_to_one_rank_stops_both_in_good_order(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", steps=100_000, micro_batch=2, checkpoint_every=1000)
    with started(folder, ranks=2) as process:
        until(lambda: last_step(folder) > 5)
        os.kill(rank_processes(process.pid)[1], signal.SIGTERM)
        assert process.wait(240) == 0
    stopped = verdict(folder)
    assert stopped["outcome"] == "stopped"
    assert events(folder, "checkpointed")[-1]["step"] == stopped["step"] == last_step(folder)
    assert not (folder / STOP).exists()


OUT_OF_MEMORY = """
import os, sys
import torch
from trainer import __main__ as program
from trainer.run_files import HELD_DESCRIPTORS
from trainer.model import gpt as model

if HELD_DESCRIPTORS in os.environ:
    print("open again:", [os.path.exists(f"/proc/self/fd/{{number}}") for number in (60, 61)], file=sys.stderr)
else:
    for number in (60, 61):
        os.dup2(2, number)
    os.environ[HELD_DESCRIPTORS] = "60"

forward = model.GPT.forward

def too_large(self, ids, targets=None):
    if self.training and len(ids) > {fits} and os.environ.get("RANK", "0") == "{rank}":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return forward(self, ids, targets)

model.GPT.forward = too_large
program.main()
"""


@pytest.mark.nightly
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_out_of_memory_on_a_rank_is_answered_with_a_smaller_micro_batch(
    one_rank: Path, tmp_path: Path, ranks: int, rank: int
) -> None:
    folder = new_run(tmp_path / "run", steps=STEPS, micro_batch=4)
    program = tmp_path / "program.py"
    program.write_text(OUT_OF_MEMORY.format(fits=2, rank=rank))
    assert run_to_end(folder, ranks, (str(program),)) == 0
    (event,) = events(folder, "micro_batch_reduced")
    assert (event["from"], event["to"]) == (4, 2)
    assert events(folder, "started")[-1]["micro_batch"] == 2
    assert events(folder, "started")[-1]["accumulation"] == 4 // ranks
    assert losses(folder) == pytest.approx(losses(one_rank), rel=1e-5)
    assert verdict(folder)["outcome"] == "finished"
    assert (folder / "train.log").read_text().count("open again: [True, False]") == ranks


@pytest.mark.nightly
def test_out_of_memory_a_second_time_fails_with_a_suggestion(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run", model=TINY, micro_batch=8)
    program = tmp_path / "program.py"
    program.write_text(OUT_OF_MEMORY.format(fits=2, rank=0))
    assert run_to_end(folder, 1, (str(program),)) == 1
    assert verdict(folder)["outcome"] == "failed"
    assert "out of GPU memory at micro_batch 4" in verdict(folder)["reason"]
    assert "after it was reduced from 8: set train.micro_batch = 2" in verdict(folder)["reason"]
    assert len(events(folder, "micro_batch_reduced")) == 1


def test_the_leader_works_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(dist, "barrier", lambda: said.append("barrier"))
    for rank in (0, 1):
        world = World(rank, 2, rank, torch.device("cpu"))
        leader_first(world, lambda rank=rank: said.append(f"work {rank}"))  # type: ignore[misc]
    leader_first(World(0, 1, 0, torch.device("cpu")), lambda: said.append("alone"))
    assert said == ["work 0", "barrier", "barrier", "work 1", "alone"]
