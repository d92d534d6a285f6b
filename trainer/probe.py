"""`python -m trainer.probe`: the micro-batch for this GPU, and its rate, in seconds.

One process, random tokens, the run's real shapes: forward, backward and optimizer step. Of the micro-batches that leave
a tenth of the free memory free it takes the smallest that is at most 2 % slower than the best: a larger one gains
nothing and only comes closer to the edge. On a CPU, where memory sets no hard limit, it measures the rate of the
configured micro-batch. It prints JSON lines, the last one is the result. It must not touch the run folder, and it does
not measure the communication between GPUs.

Example::

    python -m trainer.probe --config run/config.json --ranks 8
    {"event": "tried", "micro_batch": 12, "fits": true, "peak_gib": 9.4}
    {"micro_batch": 12, "accumulation": 1, "tokens_per_second": 3100000, "peak_gib": 9.4, "free_gib": 39.1, ...}
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch.optim import Optimizer

from trainer.arithmetic import GIB, divisors, fewest_loss_chunks, largest_micro_batch, split_batch
from trainer.contract import ContractError, RunConfig
from trainer.model.attention import same_attention_everywhere
from trainer.model.gpt import GPT
from trainer.model.optimizers import build_optimizers
from trainer.model.precision import Autocast, autocast_to, choose_precision
from trainer.progress import print_event, print_line
from trainer.training.compile_check import compile_fault
from trainer.training.failures import is_out_of_memory

HEADROOM = 0.1
"""Of the free memory, left beside the measured peak: NCCL's buffers, the validation's shapes, fragments of days."""
AS_FAST = 0.98
"""Of the best rate: a smaller micro-batch that reaches it is taken."""
SMALLER_TRIES = 3
"""How many micro-batches below the largest are timed: compiling takes its seconds for each."""
MEASURE_S = 1.0
FEWEST_MEASUREMENTS = 2
COMPILE_BATCHES = 3


class ProbeError(ValueError):
    """The configuration does not divide over the ranks, or not even one sequence fits."""


class ProbeResult(TypedDict):
    """The last line on stdout. Memory in GiB, None on a CPU; `compile_fault` says why the run should stay eager."""

    micro_batch: int
    accumulation: int
    tokens_per_second: int
    peak_gib: float | None
    free_gib: float | None
    ranks: int
    compile_fault: str | None
    device: str


@dataclass
class ProbedModel:
    """The model and its optimizers as the run will build them."""

    model: GPT
    optimizers: list[Optimizer]
    config: RunConfig
    device: torch.device
    autocast: Autocast
    ranks: int = 1
    free_gib: float | None = None
    """Of the GPU before the model was there; None on a CPU."""

    def batch(self, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random ids and targets, (micro_batch, context_length): shapes matter here, text does not."""
        model, train = self.config.model, self.config.train
        if self.free_gib is not None:  # as the run will cut the loss
            self.model.loss_chunks = fewest_loss_chunks(model, micro_batch, self.free_gib, train, self.ranks)
        shape = (2, micro_batch, self.config.model.context_length)
        ids, targets = torch.randint(self.config.model.vocab_size, shape, device=self.device)
        return ids, targets

    def micro_step(self, micro_batch: int) -> None:
        """Forward and backward."""
        with self.autocast():
            loss: torch.Tensor = self.model(*self.batch(micro_batch))
        loss.backward()  # type: ignore[no-untyped-call]

    def optimizer_step(self) -> None:
        """Steps all optimizers. Gradients stay, for a second call."""
        for optimizer in self.optimizers:
            optimizer.step()


def probe(config: RunConfig, ranks: int, device: torch.device) -> ProbeResult:
    """The result line. Raises ProbeError."""
    train = config.train
    try:
        split_batch(train.global_batch, ranks, 1)
    except ValueError as error:
        raise ProbeError(str(error)) from error
    share = train.global_batch // ranks
    free_gib = torch.cuda.mem_get_info(device)[0] / GIB if device.type == "cuda" else None
    probed = dataclasses.replace(_build(config, device), ranks=ranks, free_gib=free_gib)
    if free_gib is None:
        micro_batch = _configured(train.micro_batch, share)
        fault = _compile(probed, micro_batch)
        step_s, peak_gib = _step_s(probed, micro_batch, share), None
    else:
        largest, _ = _largest(probed, share, free_gib)
        largest, fault = _compile_largest(probed, [size for size in divisors(share) if size <= largest])
        sizes = [size for size in divisors(share) if size <= largest][: 1 + SMALLER_TRIES]
        micro_batch, step_s = smallest_as_fast(sizes, lambda size: _step_s(probed, size, share))
        peak_gib = _peak_gib(probed, micro_batch, free_gib)
    accumulation = share // micro_batch
    return {
        "micro_batch": micro_batch,
        "accumulation": accumulation,
        "tokens_per_second": round(train.global_batch * config.model.context_length / step_s),
        "peak_gib": peak_gib,
        "free_gib": None if free_gib is None else round(free_gib, 2),
        "ranks": ranks,
        "compile_fault": fault,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def smallest_as_fast(sizes: Sequence[int], step_s_of: Callable[[int], float]) -> tuple[int, float]:
    """The smallest of sizes (largest first) whose step is at most 2 % slower than the best, and its seconds.

    It walks down and stops at the first that is slower: below, each would be slower still.
    """
    timed = [(sizes[0], step_s_of(sizes[0]))]
    for size in sizes[1:]:
        step_s = step_s_of(size)
        if min(known for _, known in timed) < AS_FAST * step_s:
            break
        timed.append((size, step_s))
    best_s = min(step_s for _, step_s in timed)
    return next((size, step_s) for size, step_s in reversed(timed) if best_s >= AS_FAST * step_s)


def _step_s(probed: ProbedModel, micro_batch: int, share: int) -> float:
    """Seconds of one optimizer step of this rank."""
    step_s = share // micro_batch * _seconds(lambda: probed.micro_step(micro_batch), probed.device)
    step_s += _seconds(probed.optimizer_step, probed.device)
    print_event("timed", micro_batch=micro_batch, step_s=round(step_s, 6))
    return step_s


def _build(config: RunConfig, device: torch.device) -> ProbedModel:
    same_attention_everywhere()
    torch.manual_seed(config.train.seed)
    torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
    model = GPT(config.model, config.train.activation_checkpointing).to(device)
    dtype, _ = choose_precision(config.train.precision, device)
    return ProbedModel(model, build_optimizers(model, config.train), config, device, autocast_to(dtype, device))


def _configured(micro_batch: int, share: int) -> int:
    """The configured micro-batch, or the next smaller one that divides the share."""
    return next(size for size in divisors(share) if size <= max(1, micro_batch))


def _largest(probed: ProbedModel, share: int, free_gib: float) -> tuple[int, float]:
    """The largest divisor of the share that fits, and its peak. Raises ProbeError when one sequence does not fit."""
    config = probed.config
    predicted = largest_micro_batch(
        config.model,
        share,
        free_gib,
        config.train.precision,
        activation_checkpointing=config.train.activation_checkpointing,
        optimizer=config.train.optimizer,
    )
    fitting = search(divisors(share), predicted, lambda size: _peak_gib(probed, size, free_gib))
    if fitting is None:
        raise ProbeError(
            f"one sequence of {config.model.context_length} tokens does not fit into the {free_gib:.1f} GiB that are "
            "free: set train.activation_checkpointing = true, or take a card with more memory"
        )
    return fitting


def search(
    sizes: Sequence[int], predicted: int | None, peak_gib_of: Callable[[int], float | None]
) -> tuple[int, float] | None:
    """The largest of sizes (largest first) that has a peak, and that peak; None where none has.

    It starts at the predicted size and walks down to the first that fits, or up to the first that does not: where the
    prediction is right, that takes two tries.
    """
    at = sizes.index(predicted) if predicted is not None else len(sizes) - 1
    peak_gib = peak_gib_of(sizes[at])
    if peak_gib is None:
        smaller = ((size, peak_gib_of(size)) for size in sizes[at + 1 :])
        return next(((size, peak) for size, peak in smaller if peak is not None), None)
    while at > 0 and (larger := peak_gib_of(sizes[at - 1])) is not None:
        at, peak_gib = at - 1, larger
    return sizes[at], peak_gib


def _peak_gib(probed: ProbedModel, micro_batch: int, free_gib: float) -> float | None:
    """Peak reserved memory of two steps at this micro-batch, or None where it does not fit beside the headroom.

    Two, because the second one has gradients and optimizer state in place while the activations grow.
    """
    device = probed.device
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in range(2):
            probed.micro_step(micro_batch)
            probed.optimizer_step()
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print_event("tried", micro_batch=micro_batch, fits=False)
        return None
    peak_gib = torch.cuda.max_memory_reserved(device) / GIB
    fits = peak_gib <= (1 - HEADROOM) * free_gib
    print_event("tried", micro_batch=micro_batch, fits=fits, peak_gib=round(peak_gib, 2))
    return round(peak_gib, 2) if fits else None


def _compile_largest(probed: ProbedModel, sizes: Sequence[int]) -> tuple[int, str | None]:
    """The first of sizes (largest first) at which compiling finds enough memory, and the compile check's fault.

    Raises ProbeError where none has enough.
    """
    for size in sizes:
        try:
            return size, _compile(probed, size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        probed.model.compile_parts(False)
        print_event("tried", micro_batch=size, fits=False)
        gc.collect()
        torch.cuda.empty_cache()
    raise ProbeError("compiling one sequence takes more memory than is free: set train.compile = false")


def _compile(probed: ProbedModel, micro_batch: int) -> str | None:
    """Compiles the model where the run will; returns the compile check's fault, or None."""
    choice = probed.config.train.compile
    if not (probed.device.type == "cuda" if choice is None else choice):
        return None
    batches = [probed.batch(micro_batch) for _ in range(COMPILE_BATCHES)]
    fault = compile_fault(probed.model, batches, probed.autocast)
    if fault is not None:
        probed.model.compile_parts(False)
    return fault


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Median wall time of one call in seconds, after one call to warm up."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) <= FEWEST_MEASUREMENTS or time.perf_counter() - began < MEASURE_S:
        before = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - before)
    return statistics.median(times[1:])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.probe", description="Find the largest micro-batch that fits this GPU."
    )
    parser.add_argument("--config", required=True, help="a config.json: its text, its path, or a run folder")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that share the global batch (default: 1)")
    parser.add_argument("--device", help="cpu or cuda (default: the configuration's)")
    return parser.parse_args(arguments)


def _read_config(options: str) -> RunConfig:
    if options.lstrip().startswith("{"):
        return RunConfig.from_json(options)
    path = Path(options)
    return RunConfig.from_json((path / "config.json" if path.is_dir() else path).read_text())


def _device(choice: str) -> torch.device:
    usable = torch.cuda.is_available()
    if choice == "cuda" and not usable:
        raise ProbeError("device is cuda, but torch sees no usable card on this machine")
    return torch.device("cuda" if usable and choice != "cpu" else "cpu")


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0 with the result as the last line on stdout, or 1 with the reason on stderr."""
    options = _parse(arguments)
    try:
        config = _read_config(options.config)
        print_line(**probe(config, options.ranks, _device(options.device or config.device)))
    except (ContractError, ProbeError, OSError) as error:
        print(f"probe: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
