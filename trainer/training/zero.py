"""ZeRO, stage 1: each rank keeps the optimizer state of its share of the weights, and steps that share only.

After Rajbhandari et al., arXiv 1910.02054. Weights and gradients are in flat buckets. As soon as the last backward pass
has filled a bucket, it is reduced and each rank gets the sum of its part; each steps its part; all gather the weights.
Muon needs whole matrices: its buckets are reduced whole, and AdamW's are shared. It must not know the loss or the data.

Example::

    zero = Zero(model, optimizers, world)     # from here on the optimizers step this rank's parts
    with zero.no_sync(): ...                  # a backward pass whose gradients stay here
    zero.wait(); norm = zero.norm(); ...; zero.gather()
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from trainer.model.gpt import GPT
from trainer.training.ranks import World

BUCKET_BYTES = 25 * 1024**2
"""As in DDP: large enough for the links, small enough to be reduced while the backward pass goes on."""
ALIGNMENT = 64
"""Of each tensor in a bucket, in elements: compiled kernels read 16 bytes at once."""

_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Bucket:
    """Some parameters whose weights and gradients are one flat tensor each. `own` is this rank's part of the weights as
    a parameter, with its part of the reduced gradients; None where the bucket is reduced whole."""

    def __init__(self, parameters: Sequence[nn.Parameter], world: World, dtype: torch.dtype, *, shared: bool) -> None:
        self.parameters, self.world, self.dtype = list(parameters), world, dtype
        self.places = list(_places(self.parameters))
        size = _rounded(self.places[-1].stop, ALIGNMENT * world.size)
        self.weights = self.parameters[0].new_zeros(size)
        self.gradients = torch.zeros_like(self.weights)
        part = size // world.size
        self.part = slice(world.rank * part, (world.rank + 1) * part)
        for parameter, place in zip(self.parameters, self.places, strict=True):
            self.weights[place].view_as(parameter).copy_(parameter.data)
            parameter.data = self.weights[place].view_as(parameter)
            parameter.grad = self.gradients[place].view_as(parameter)
        dist.broadcast(self.weights, src=0)
        self.own = nn.Parameter(self.weights[self.part]) if shared else None
        if self.own is not None:
            self.own.grad = torch.zeros_like(self.own)
        self.waiting = len(self.parameters)
        self.work: dist.Work | None = None
        self.sent: Tensor | None = None

    def reduce(self) -> None:
        """Starts to sum the gradients over the ranks, in self.dtype."""
        self.sent = self.gradients if self.dtype == self.gradients.dtype else self.gradients.to(self.dtype)
        if self.own is None:
            self.work = dist.all_reduce(self.sent, async_op=True)
            return
        assert self.own.grad is not None
        same = self.sent.dtype == self.own.grad.dtype
        self.got = self.own.grad if same else self.sent.new_empty(self.own.shape)
        self.work = _reduce_scatter(self.got, self.sent, async_op=True)

    def wait(self) -> None:
        """The sums are in `own.grad`, or in the gradients of a whole bucket. On CUDA only the stream waits."""
        assert self.work is not None
        self.work.wait()
        if self.own is not None and self.own.grad is not self.got:
            self.own.grad.copy_(self.got)  # type: ignore[union-attr]
        elif self.own is None and self.sent is not self.gradients:
            self.gradients.copy_(self.sent)  # type: ignore[arg-type]
        self.work, self.sent, self.waiting = None, None, len(self.parameters)

    def whole(self, part: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Of something that each rank has for its part: what belongs to each parameter, on every rank."""
        together = torch.empty_like(self.weights)
        _all_gather(together, part.contiguous())
        for parameter, place in zip(self.parameters, self.places, strict=True):
            yield parameter, together[place].view_as(parameter)


class Zero:
    """Holds the buckets, in the order in which the backward pass fills them."""

    def __init__(
        self, model: GPT, optimizers: Sequence[Optimizer], world: World, dtype: torch.dtype = torch.float32
    ) -> None:
        self.world, self.optimizers, self.reducing, self.next = world, list(optimizers), True, 0
        order = {parameter: number for number, parameter in enumerate(model.parameters())}
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.buckets: list[Bucket] = []
        for optimizer in optimizers:
            shared = isinstance(optimizer, AdamW)
            for group in optimizer.param_groups:
                found = [
                    Bucket(members, world, dtype, shared=shared)
                    for members in _cut(sorted(group["params"], key=lambda each: -order[each]))
                ]
                self.buckets += found
                if shared:
                    group["params"] = [_take_over(optimizer, bucket) for bucket in found]
        self.buckets.sort(key=lambda bucket: -min(order[each] for each in bucket.parameters))
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                hook = partial(self._on_gradient, bucket)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients stay on their rank."""
        self.reducing = False
        try:
            yield
        finally:
            self.reducing = True

    def _on_gradient(self, bucket: Bucket, _: Tensor) -> None:
        """Reduces the bucket once it is full. All ranks start the buckets in the same order."""
        if not self.reducing:
            return
        bucket.waiting -= 1
        while self.next < len(self.buckets) and not self.buckets[self.next].waiting:
            self.buckets[self.next].reduce()
            self.next += 1

    def wait(self) -> None:
        """After the last backward pass: every gradient is reduced."""
        for bucket in self.buckets[self.next :]:
            bucket.reduce()  # a parameter without a gradient
        for bucket in self.buckets:
            bucket.wait()
        self.next = 0

    def norm(self) -> Tensor:
        """Of all gradients, the same on every rank; a scalar on the device."""
        own = [bucket.own.grad for bucket in self.buckets if bucket.own is not None and bucket.own.grad is not None]
        total = torch.nn.utils.get_total_norm(own).square()
        dist.all_reduce(total)
        whole = [bucket.gradients for bucket in self.buckets if bucket.own is None]
        return (total + torch.nn.utils.get_total_norm(whole).square() if whole else total).sqrt()

    def gather(self) -> None:
        """After the optimizers' step: everybody gets the new weights, and gradients start at zero."""
        for bucket in self.buckets:
            if bucket.own is not None:
                _all_gather(bucket.weights, bucket.own.detach())
        torch._foreach_zero_([bucket.gradients for bucket in self.buckets])

    def state(self, model: GPT) -> dict[str, dict[str, Tensor]]:
        """AdamW's state by parameter name, as one rank alone would have it. All ranks must ask at the same time."""
        found: dict[str, dict[str, Tensor]] = {}
        for bucket in self.buckets:
            for key, value in self._state_of(bucket).items():
                if value.dim():
                    for parameter, tensor in bucket.whole(value):
                        name = self.names[parameter]
                        found.setdefault(name, {})[key] = model.unpad(name, tensor)
                else:
                    for parameter in bucket.parameters:
                        found.setdefault(self.names[parameter], {})[key] = value
        return found

    def _state_of(self, bucket: Bucket) -> Mapping[str, Tensor]:
        own = bucket.own
        states = (optimizer.state for optimizer in self.optimizers)
        return {} if own is None else next((state[own] for state in states if own in state), {})


def _take_over(optimizer: Optimizer, bucket: Bucket) -> nn.Parameter:
    """This rank's part of the state that the optimizer has for the bucket's parameters, in place of theirs."""
    assert bucket.own is not None
    whole: dict[str, Any] = {}
    for parameter, place in zip(bucket.parameters, bucket.places, strict=True):
        for key, value in optimizer.state.pop(parameter, {}).items():
            if value.dim():
                whole.setdefault(key, torch.zeros_like(bucket.weights))[place].view_as(value).copy_(value)
            else:
                whole[key] = value
    if whole:
        parts = {key: value[bucket.part].clone() if value.dim() else value for key, value in whole.items()}
        optimizer.state[bucket.own] = parts
    return bucket.own


def _cut(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    members: list[nn.Parameter] = []
    for parameter in parameters:
        if members and sum(each.nbytes for each in [*members, parameter]) > BUCKET_BYTES:
            yield members
            members = []
        members.append(parameter)
    if members:
        yield members


def _places(parameters: Sequence[nn.Parameter]) -> Iterator[slice]:
    start = 0
    for parameter in parameters:
        yield slice(start, start + parameter.numel())
        start = _rounded(start + parameter.numel(), ALIGNMENT)


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
