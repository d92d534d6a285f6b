"""Training speeds that others published for GPT-2 small, against which the roofline is checked; figures are theirs.

`python -m tests.support.files.published_rates` prints the table of docs/concepts/speed.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.core.machines import machine_type
from trainer.arithmetic.roofline import Card, Job, tokens_per_second
from trainer.contract import ModelConfig


@dataclass(frozen=True)
class Row:
    """A rate in tokens per second over the whole machine. `differs`: why its code is not comparable with ours; empty
    for plain PyTorch with fused attention, in half precision."""

    by: str
    machine: str
    rate: float
    job: Job
    differs: str = ""

    @property
    def ratio(self) -> float:
        """The roofline's prediction over the published rate."""
        return predicted(self) / self.rate


def predicted(row: Row) -> float:
    """The roofline's tokens per second for that job."""
    gpu = machine_type(row.machine).gpu
    assert gpu is not None
    precision = "bf16" if row.job.half else "fp32"
    gemm = gpu.gemm if row.job.half else 0.8
    card = Card(gpu.peak_flops(precision), gpu.memory_gb_per_s * 1e9, gpu.link_gb_per_s * 1e9, gemm, gpu.attention)
    return tokens_per_second(ModelConfig(), row.job, card)


UNFUSED = "attention by hand, no compiler, dropout"
ROWS = (
    Row("Raschka, SDPA, eager", "1xA100-40GB", 91_901, Job(1, 4, compiled=False)),
    Row("Raschka, compiled, padded", "1xA100-40GB", 127_345, Job(1, 4)),
    Row("Raschka, larger batch", "1xA100-40GB", 142_156, Job(1, 32)),
    Row("D. Saha, reproduction", "8xA100-80GB", 1_100_000, Job(8, 64, clips=True)),
    Row("modded-nanogpt #7", "8xH100", 3_700_000, Job(8, 64, optimizer="muon")),
    Row("llm.c's PyTorch baseline", "2x4090", 221_000, Job(2, 16, 16, clips=True)),
    Row("nanoGPT issue 182", "1x4090", 106_000, Job(1, 12, 40, clips=True)),
    Row("Raschka, 4 GPUs", "4xA100-40GB", 419_259, Job(4, 32), "scaled by 0.74, link unknown"),
    Row("nanoGPT README", "8xA100-40GB", 853_000, Job(8, 12, 5, clips=True), "before fused attention"),
    Row("llm.c", "8xA100-80GB", 1_750_000, Job(8, 64, clips=True), "C and CUDA"),
    Row("llm.c", "8xH100", 3_800_000, Job(8, 64, clips=True), "C and CUDA"),
    Row("S. Sangai, fp32", "8x4090", 214_000, Job(8, 16, 4, compiled=False, half=False), "settings unknown"),
    Row("reference trainer", "1x3090", 20_979, Job(1, 6, 16, compiled=False), UNFUSED),
    Row("reference trainer", "8xA100-40GB", 265_573, Job(8, 12, compiled=False), UNFUSED),
    Row("reference trainer, stacked", "8xA100-40GB", 285_044, Job(8, 12, compiled=False, clips=True), UNFUSED),
    Row("reference trainer", "8xA100-80GB", 282_707, Job(8, 28, compiled=False), UNFUSED),
    Row("reference trainer, fp32", "8xA100-80GB", 111_535, Job(8, 12, compiled=False, half=False), UNFUSED),
    Row("reference trainer", "8xH100", 490_000, Job(8, 27, compiled=False), UNFUSED),
    Row("reference trainer", "8xB200", 778_107, Job(8, 64, compiled=False), UNFUSED),
)
COMPARABLE = tuple(row for row in ROWS if not row.differs)


def mean_ratio() -> float:
    """Geometric, over the comparable rows."""
    return math.exp(sum(math.log(row.ratio) for row in COMPARABLE) / len(COMPARABLE))


def main() -> None:
    """Prints the table."""
    print("| published by | machine | published tok/s | roofline | ratio | their code |\n|---|---|---|---|---|---|")
    for row in ROWS:
        print(
            f"| {row.by} | {row.machine} | {row.rate:,.0f} | {predicted(row):,.0f} | **{row.ratio:.2f}** "
            f"| {row.differs or 'comparable'} |"
        )
    print(f"\nGeometric mean of the comparable rows: {mean_ratio():.2f}.")


if __name__ == "__main__":
    main()
