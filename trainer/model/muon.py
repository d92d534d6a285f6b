"""Muon: momentum, made orthogonal by Newton-Schulz iterations, for the matrices of the blocks (Jordan et al., 2024).

The host never waits for the device: a step with non-finite gradients is undone there. Over several ranks each one
makes its share of the matrices orthogonal and all gather the results; each matrix goes through the same products as on
one rank, so the weights are the same bit for bit. Momentum is on every rank: a checkpoint of one rank is whole. It must
not know how ranks talk to each other.

Example::

    muon = Muon([{"params": [block.mlp_up.weight]}, {"params": [block.qkv.weight], "parts": 3}], 1e-3, 0.01)
    muon.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: the slope at zero is as large as it can be (Jordan's post and torch.optim.Muon)."""
SMALLEST_NORM = 1e-7


class Peers(NamedTuple):
    """This rank among those that share the work. `gather` returns (size, n) of everybody's (n,)."""

    rank: int = 0
    size: int = 1
    gather: Callable[[Tensor], Tensor] = torch.atleast_2d


ALONE = Peers()


class Piece(NamedTuple):
    """A matrix to make orthogonal by itself: views of the parameter, its gradient and its momentum."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    rate: float
    kept: Tensor | float
    """What weight decay leaves of the weights; 1 in a step that changes nothing."""


class Muon(Optimizer):
    """torch.optim.Muon's update with `match_rms_adamw`: AdamW's learning rate and weight decay fit (arXiv 2502.16982).

    A group may have `parts`: into how many matrices, one below the other, each parameter falls. `found_inf` is set from
    outside as for fused AdamW: a scalar on the device, 1 where this step must change nothing.
    """

    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, weight_decay: float, peers: Peers = ALONE) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "parts": 1})
        self.peers = peers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step. Every rank must have the same gradients."""
        skipped = None if self.found_inf is None else self.found_inf > 0
        pieces = list(self._pieces())
        for piece in pieces:
            finite = piece.gradient if skipped is None else torch.where(skipped, piece.momentum, piece.gradient)
            piece.momentum.lerp_(finite, 1 - MOMENTUM)
        for piece, update in zip(pieces, self._updates(pieces), strict=True):
            scale = piece.rate * 0.2 * math.sqrt(max(piece.weight.shape))  # AdamW's root mean square
            taken = update if skipped is None else update.masked_fill(skipped, 0.0)
            piece.weight.mul_(piece.kept).add_(taken, alpha=-scale)

    def _pieces(self) -> Iterator[Piece]:
        for group in self.param_groups:
            lost = group["lr"] * group["weight_decay"]
            kept = 1 - lost if self.found_inf is None else 1 - lost * (1 - self.found_inf)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield from self._parts(parameter, group, kept)

    def _parts(self, parameter: nn.Parameter, group: dict[str, Any], kept: Tensor | float) -> Iterator[Piece]:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        together = (parameter.detach(), parameter.grad, state["momentum_buffer"])
        for weight, gradient, momentum in zip(*(whole.chunk(group["parts"]) for whole in together), strict=True):
            yield Piece(weight, gradient, momentum, group["lr"], kept)

    def _updates(self, pieces: Sequence[Piece]) -> Iterator[Tensor]:
        """The orthogonal matrix of each piece, in order."""
        if self.peers.size == 1:
            yield from map(_orthogonal, pieces)
            return
        shapes = [piece.weight.shape for piece in pieces]
        owners = dealt(shapes, self.peers.size)
        longest = max(sum(s.numel() for s, o in zip(shapes, owners, strict=True) if o == rank) for rank in owners)
        device = pieces[0].weight.device
        mine = torch.zeros(longest, dtype=product_dtype(device), device=device)
        places = list(_places(shapes, owners))
        for piece, owner, place in zip(pieces, owners, places, strict=True):
            if owner == self.peers.rank:
                mine[place].view_as(piece.weight).copy_(_orthogonal(piece))
        everybodys = self.peers.gather(mine)
        for shape, owner, place in zip(shapes, owners, places, strict=True):
            yield everybodys[owner, place].view(shape)


def _orthogonal(piece: Piece) -> Tensor:
    """Of Nesterov's momentum."""
    return orthogonalized(piece.gradient.lerp(piece.momentum, MOMENTUM))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Near U V^T of matrix = U S V^T, (rows, columns), in the number type of product_dtype."""
    tall = matrix.shape[0] > matrix.shape[1]
    a, b, c = COEFFICIENTS
    x = matrix.to(product_dtype(matrix.device))
    x = x.T if tall else x
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def product_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it fast: the iteration needs no more precision. fp32 elsewhere."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def _places(shapes: Sequence[torch.Size], owners: Sequence[int]) -> Iterator[slice]:
    """Where each matrix is in its owner's part."""
    ends = dict.fromkeys(owners, 0)
    for shape, owner in zip(shapes, owners, strict=True):
        start, ends[owner] = ends[owner], ends[owner] + shape.numel()
        yield slice(start, ends[owner])


def dealt(shapes: Sequence[Sequence[int]], size: int) -> list[int]:
    """Whose each matrix is: the dearest first, round by round, so that no rank has more than one of a kind too many."""
    costs = [2 * min(shape) ** 2 * max(shape) + min(shape) ** 3 for shape in shapes]
    owners = [0] * len(shapes)
    for turn, number in enumerate(sorted(range(len(shapes)), key=lambda number: -costs[number])):
        owners[number] = turn % size
    return owners
