"""Muon against torch's own, with query, key and value split, dealt over ranks, and without a wait for the device."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.files.small_runs import TINY
from trainer.config.config_tables import RateFactors
from trainer.contract import TrainConfig
from trainer.model import muon as module
from trainer.model.gpt import GPT
from trainer.model.muon import Muon, Peers, dealt, orthogonalized
from trainer.model.optimizers import build_optimizers, set_learning_rate, state_by_name, step_unless_nonfinite


def matrices(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def with_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def after_steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int = 3) -> list[Tensor]:
    for step in range(steps):
        with_gradients(parameters, step)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


SHAPES = ((24, 8), (8, 8), (32, 8), (8, 32), (24, 8), (8, 8))


@pytest.mark.parametrize("flag", [None, torch.tensor(0.0)])
def test_it_is_torchs_muon(flag: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "product_dtype", lambda device: torch.bfloat16)
    ours, theirs = matrices(*SHAPES), matrices(*SHAPES)
    muon = Muon([{"params": ours}], 0.02, 0.1)
    muon.found_inf = flag
    known = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for one, other in zip(after_steps(ours, muon), after_steps(theirs, known), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def test_the_result_is_near_orthogonal() -> None:
    wide = orthogonalized(matrices((8, 32))[0].detach())
    assert torch.linalg.svdvals(wide).tolist() == pytest.approx([1.0] * 8, abs=0.35)


def test_split_query_key_and_value_are_three_matrices() -> None:
    (together,) = matrices((24, 8))
    parts = [nn.Parameter(part.clone()) for part in together.detach().chunk(3)]
    split, apart = Muon([{"params": [together], "parts": 3}], 0.02, 0.1), Muon([{"params": parts}], 0.02, 0.1)
    for step in range(3):
        with_gradients([together], step)
        for part, gradient in zip(parts, together.grad.chunk(3), strict=True):
            part.grad = gradient.clone()
        split.step()
        apart.step()
    assert torch.equal(together, torch.cat(parts))


def exchange(size: int) -> Callable[[int], Peers]:
    """Ranks that are threads, and gather as ranks do."""
    meeting, parts = threading.Barrier(size), {}

    def peers(rank: int) -> Peers:
        def gather(own: Tensor) -> Tensor:
            parts[rank] = own
            meeting.wait(10)
            everybodys = torch.stack([parts[other] for other in range(size)])
            meeting.wait(10)
            return everybodys

        return Peers(rank, size, gather)

    return peers


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_dealt_over_ranks_it_is_one_rank_bit_for_bit(size: int) -> None:
    def trained(peers: Peers) -> list[Tensor]:
        own = matrices(*SHAPES)
        groups = [{"params": own[:1], "parts": 3}, {"params": own[1:]}]
        return after_steps(own, Muon(groups, 0.02, 0.1, peers))

    alone, peers = trained(Peers()), exchange(size)
    with ThreadPoolExecutor(size) as ranks:
        for weights in ranks.map(lambda rank: trained(peers(rank)), range(size)):
            assert all(torch.equal(one, other) for one, other in zip(weights, alone, strict=True))


def test_nan_gradients_that_are_flagged_change_nothing() -> None:
    own = matrices(*SHAPES)
    muon = Muon([{"params": own}], 0.02, 0.1)
    weights = [weight.clone() for weight in after_steps(own, muon)]
    momenta = [muon.state[parameter]["momentum_buffer"].clone() for parameter in own]
    for parameter in own:
        parameter.grad = torch.full_like(parameter, torch.nan)
    muon.found_inf = torch.tensor(1.0)
    muon.step()
    assert all(torch.equal(parameter, weight) for parameter, weight in zip(own, weights, strict=True))
    kept = [muon.state[parameter]["momentum_buffer"] for parameter in own]
    assert all(torch.equal(one, other) for one, other in zip(kept, momenta, strict=True))


def test_the_deal_is_fair() -> None:
    shapes = [shape for _ in range(12) for shape in ((768, 768),) * 4 + ((3072, 768), (768, 3072))]
    owners = dealt(shapes, 8)
    for square in (True, False):
        kind = [owner for owner, (rows, columns) in zip(owners, shapes, strict=True) if (rows == columns) is square]
        assert len({kind.count(rank) for rank in range(8)}) == 1


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: a scalar that becomes a number of Python."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing() -> None:
    model = GPT(TINY)
    optimizers = build_optimizers(model, TrainConfig(optimizer="muon", split_qkv=True))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with Waits() as waits:
        optimizers[0].found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
        optimizers[0].step()
    assert waits.count == 0


def test_each_kind_of_tensor_has_its_rate() -> None:
    factors = RateFactors(token_embedding=2.0, head=0.5, qkv=3.0, mlp_down=0.0, vectors=4.0)
    for optimizer in ("adamw", "muon"):
        model = GPT(TINY)
        optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer, rate_factors=factors))
        set_learning_rate(optimizers, 0.1)
        names = {parameter: name for name, parameter in model.named_parameters()}
        rates = {names[p]: group["lr"] for o in optimizers for group in o.param_groups for p in group["params"]}
        assert rates.keys() == set(names.values())
        assert rates["token_embedding.weight"] == 0.2
        assert rates["position_embedding.weight"] == 0.1
        assert rates["head.weight"] == 0.05
        assert rates["blocks.1.qkv.weight"] == pytest.approx(0.3)
        assert rates["blocks.1.mlp_down.weight"] == 0.0
        assert rates["blocks.1.mlp_norm.weight"] == rates["final_norm.bias"] == 0.4


def test_a_split_state_continues_unsplit_and_the_other_way_round() -> None:
    model = GPT(TINY)
    (muon, _) = optimizers = build_optimizers(model, TrainConfig(optimizer="muon", split_qkv=True))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step_unless_nonfinite(optimizers, torch.tensor(0.0))
    assert state_by_name(model, [muon])["blocks.0.qkv.weight"]["momentum_buffer"].shape == (96, 32)
