"""Training speeds that others published for GPT-2 small, against which the roofline is checked; figures are theirs.

The roofline predicts our code. What other code does beside it is counted in bytes per token (`Extra`), fitted once over
all rows of that code; every row then has to be met within the uncertainty that `plan` states for such a prediction.

`python -m tests.support.files.published_rates` prints the table of docs/concepts/speed.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.core.machines import machine_type
from trainer.arithmetic.roofline import MEMORY_SHARE, Card, Job, tokens_per_second
from trainer.contract import ModelConfig


@dataclass(frozen=True)
class Extra:
    """What other code does per token beside ours: memory traffic in bytes, and seconds in which a card waits."""

    what: str
    bytes: float = 0.0
    waits_s: float = 0.0

    def __add__(self, other: Extra) -> Extra:
        return Extra(f"{self.what}, {other.what}", self.bytes + other.bytes, self.waits_s + other.waits_s)


OURS = Extra("")
BY_HAND = Extra("attention and norms by hand, no compiler", 13e6, 5e-6)
GELU_BY_HAND = Extra("GELU by hand", 6.2e6)
DROPOUT = Extra("dropout", 2.8e6)
REFERENCE = BY_HAND + GELU_BY_HAND + DROPOUT
COMPILED_SCORES = Extra("attention by hand, compiled", 4e6)


@dataclass(frozen=True)
class Row:
    """A rate in tokens per second over the whole machine. `differs`: why its code is not comparable with ours beyond
    `extra`. `uncertainty`: as `plan` states it, 0.5 where something of the machine or the settings is assumed."""

    by: str
    machine: str
    rate: float
    job: Job
    extra: Extra = OURS
    differs: str = ""
    uncertainty: float = 0.3
    tf32: bool = False

    @property
    def ratio(self) -> float:
        """The roofline's prediction of our code over the published rate."""
        return predicted(self) / self.rate

    @property
    def is_comparable(self) -> bool:
        """Plain PyTorch with fused attention, in half precision."""
        return self.extra == OURS and not self.differs

    @property
    def error(self) -> float:
        """How far the published rate is from the prediction of that code, as a fraction of it."""
        return self.rate / predicted(self, self.extra) - 1


def predicted(row: Row, extra: Extra = OURS) -> float:
    """The roofline's tokens per second for that job, with what other code does beside it."""
    gpu = machine_type(row.machine).gpu
    assert gpu is not None
    precision = "bf16" if row.job.half else "fp32"
    peak, gemm = gpu.peak_flops(precision, row.tf32), gpu.gemm_share(precision, row.tf32)
    card = Card(peak, gpu.memory_gb_per_s * 1e9, gpu.link_gb_per_s * 1e9, gemm, gpu.attention)
    slower_s = extra.bytes / (card.memory_bytes_per_s * MEMORY_SHARE) + extra.waits_s
    return row.job.ranks / (row.job.ranks / tokens_per_second(ModelConfig(), row.job, card) + slower_s)


ROWS = (
    Row("Raschka, SDPA, eager", "1xA100-40GB", 91_901, Job(1, 4, compiled=False)),
    Row("Raschka, compiled, padded", "1xA100-40GB", 127_345, Job(1, 4)),
    Row("Raschka, larger batch", "1xA100-40GB", 142_156, Job(1, 32)),
    Row("D. Saha, reproduction", "8xA100-80GB", 1_100_000, Job(8, 64, clips=True)),
    Row("modded-nanogpt #7", "8xH100", 3_700_000, Job(8, 64, optimizer="muon")),
    Row("llm.c's PyTorch baseline", "2x4090", 221_000, Job(2, 16, 16, clips=True)),
    Row("nanoGPT issue 182", "1x4090", 106_000, Job(1, 12, 40, clips=True)),
    Row("Raschka, 4 GPUs", "4xA100-40GB", 419_259, Job(4, 32), differs="link unknown", uncertainty=0.5),
    Row("nanoGPT README", "8xA100-40GB", 853_000, Job(8, 12, 5, clips=True), COMPILED_SCORES),
    Row("nanoGPT issue 110", "8xA100-40GB", 875_000, Job(8, 12, 5, clips=True), COMPILED_SCORES),
    Row("llm.c", "8xA100-80GB", 1_750_000, Job(8, 64, clips=True), differs="C and CUDA"),
    Row("llm.c", "8xH100", 3_800_000, Job(8, 64, clips=True), differs="C and CUDA"),
    Row(
        "S. Sangai, fp32", "8x4090", 214_000, Job(8, 12, 6, compiled=False, half=False, clips=True),
        differs="its script says bf16, its page FP32", uncertainty=0.5, tf32=True,
    ),
    Row("reference trainer", "1x3090", 20_979, Job(1, 6, 16, compiled=False), REFERENCE),
    Row("reference trainer, built-in GELU", "1x3090", 25_100, Job(1, 6, 16, compiled=False), BY_HAND + DROPOUT),
    Row("reference trainer", "8xA100-40GB", 265_573, Job(8, 12, compiled=False), REFERENCE),
    Row(
        "reference trainer, stacked", "8xA100-40GB", 285_044, Job(8, 12, compiled=False, clips=True),
        BY_HAND + GELU_BY_HAND,
    ),
    Row("reference trainer, built-in GELU", "8xA100-40GB", 349_000, Job(8, 12, compiled=False, clips=True), BY_HAND),
    Row("reference trainer", "8xA100-80GB", 282_707, Job(8, 28, compiled=False), REFERENCE),
    Row("reference trainer, fp32", "8xA100-80GB", 111_535, Job(8, 12, compiled=False, half=False), REFERENCE),
    Row("reference trainer", "8xH100", 490_000, Job(8, 27, compiled=False), REFERENCE),
    Row("reference trainer", "8xB200", 778_107, Job(8, 64, compiled=False), REFERENCE),
)  # fmt: skip
COMPARABLE = tuple(row for row in ROWS if row.is_comparable)


def mean_ratio() -> float:
    """Geometric, over the comparable rows."""
    return math.exp(sum(math.log(row.ratio) for row in COMPARABLE) / len(COMPARABLE))


def main() -> None:
    """Prints the table."""
    print(
        "| published by | machine | published tok/s | ours, predicted | ratio | its code, predicted | off by "
        "| stated | its code |\n|---|---|---|---|---|---|---|---|---|"
    )
    for row in ROWS:
        what = ", ".join(filter(None, (row.extra.what, row.differs))) or "comparable"
        print(
            f"| {row.by} | {row.machine} | {row.rate:,.0f} | {predicted(row):,.0f} | **{row.ratio:.2f}** "
            f"| {predicted(row, row.extra):,.0f} | {row.error:+.0%} | ±{row.uncertainty:.0%} | {what} |"
        )
    print(f"\nGeometric mean of the comparable rows: {mean_ratio():.2f}.")


if __name__ == "__main__":
    main()
