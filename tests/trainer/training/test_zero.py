"""ZeRO-1 is data parallelism with less memory: the same weights on any number of ranks, and checkpoints of one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.files.training_runs import small_config, write_config
from tests.support.machines.forked_ranks import in_ranks
from trainer.checkpoints.checkpoint import write_checkpoint
from trainer.checkpoints.host_buffers import HostBuffers
from trainer.contract import ModelConfig, RunConfig
from trainer.model.optimizers import learning_rate
from trainer.run_files import CHECKPOINTS
from trainer.tokens.batches import open_data, prefetched
from trainer.training.loop import snapshot, train_step, whole_optimizer_state
from trainer.training.metrics import Journal, PartClock, StepCounts
from trainer.training.ranks import World
from trainer.training.start import Run, batch_share, prepare

SMALL = ModelConfig(vocab_size=257, context_length=16, n_layer=2, n_head=2, n_embd=16)
STEPS = 6


def config_of(folder: Path, ranks: int, **train: Any) -> RunConfig:
    options = {"steps": STEPS, "global_batch": 8, "micro_batch": 2 if ranks < 4 else 1, "grad_clip": 0.5, **train}
    return small_config(folder, model=SMALL, **options)


def steps_of(folder: Path, config: RunConfig, world: World, until: int) -> dict[str, Any]:
    """Trains to that step, leaves a checkpoint, and returns weights, optimizer state and norms."""
    run = Run(folder, config, world, Journal(folder, enabled=False))
    share, data = batch_share(config, world), open_data(config)
    engine, first = prepare(run, data, share)
    batches = prefetched(data, range(first, until), share, world.device)
    norms = []
    for step in range(first, until):
        counts, clock = StepCounts.zeros(world.device), PartClock(world.device)
        norms.append(float(train_step(engine, batches, learning_rate(step, config.train), counts, clock)[1]))
    state = whole_optimizer_state(engine)
    if world.leads:
        made = snapshot(config, engine, state, HostBuffers(), until, (1.0, None, {}))
        write_checkpoint(folder / CHECKPOINTS, made)
    held = sum(t.nbytes for o in engine.optimizers for each in o.state.values() for t in each.values())
    weights = {name: tensor.clone() for name, tensor in engine.model.unpadded_state().items()}
    return {"weights": weights, "state": state, "norms": norms, "held": held}


def trained(folder: Path, ranks: int, until: int = STEPS, **train: Any) -> list[dict[str, Any]]:
    """The results of all ranks; one rank trains here."""
    config = config_of(folder, ranks, **train)
    write_config(folder, config)
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    if ranks == 1:
        return [steps_of(folder, config, World(0, 1, 0, torch.device("cpu")), until)]
    return in_ranks(ranks, folder, lambda world: steps_of(folder, config, world, until))


def assert_same(got: dict[str, Any], expected: dict[str, Any], tolerance: float = 2e-5) -> None:
    for name, tensor in expected["weights"].items():
        assert torch.allclose(got["weights"][name], tensor, rtol=tolerance, atol=tolerance), name
    assert got["state"].keys() == expected["state"].keys()
    for name, entry in expected["state"].items():
        for key, value in entry.items():
            assert torch.allclose(got["state"][name][key], value, rtol=1e-2, atol=tolerance), f"{name} {key}"
    assert got["norms"] == pytest.approx(expected["norms"], rel=1e-3)


RANKS = (2, pytest.param(4, marks=pytest.mark.nightly))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_zero_is_ddp_is_one_rank(tmp_path: Path, ranks: int, optimizer: str) -> None:
    train = {"optimizer": optimizer, "grad_clip": 0.5 if optimizer == "muon" else None}
    (alone,) = trained(tmp_path / "one", 1, **train)
    ddp = trained(tmp_path / "ddp", ranks, **train)
    zero = trained(tmp_path / "zero", ranks, zero_stage=1, **train)
    for each in zero:
        assert_same(each, alone)
        assert_same(each, ddp[0])
        assert all(torch.equal(tensor, zero[0]["weights"][name]) for name, tensor in each["weights"].items())
    if optimizer == "adamw":  # beside padding
        assert zero[0]["held"] < 1.3 * ddp[0]["held"] / ranks
        if ranks == 2:  # a sum of two is the same in any order, but for the norm's
            assert all(torch.equal(t, ddp[0]["weights"][name]) for name, t in zero[0]["weights"].items())


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 1), (1, 0)), ((1, 0), (2, 1)), pytest.param((2, 1), (4, 1), marks=pytest.mark.nightly)],
)
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.nightly)])
def test_a_checkpoint_goes_on_under_another_world(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int], optimizer: str
) -> None:
    (unbroken,) = trained(tmp_path / "unbroken", 1, optimizer=optimizer)
    folder = tmp_path / "run"
    trained(folder, before[0], until=3, optimizer=optimizer, zero_stage=before[1])
    resumed = trained(folder, after[0], optimizer=optimizer, zero_stage=after[1])
    assert_same(resumed[0], {**unbroken, "norms": unbroken["norms"][3:]})


def test_gradients_reduced_in_bf16_are_near(tmp_path: Path) -> None:
    exact = trained(tmp_path / "fp32", 2, zero_stage=1)
    rounded = trained(tmp_path / "bf16", 2, zero_stage=1, reduce_dtype="bf16")
    assert not torch.equal(rounded[0]["weights"]["head.weight"], exact[0]["weights"]["head.weight"])
    assert_same({**rounded[0], "state": exact[0]["state"]}, {**exact[0], "norms": exact[0]["norms"]}, tolerance=5e-3)


def test_unknown_stages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zero_stage must be 0 or 1, got 2"):
        trained(tmp_path / "run", 1, zero_stage=2)
    with pytest.raises(ValueError, match="reduce_dtype must be fp32 or bf16, got 'fp8'"):
        trained(tmp_path / "run", 1, reduce_dtype="fp8")
