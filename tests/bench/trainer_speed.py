"""How fast the trainer is, beside the reference implementation's step, in one call: a table on stdout, JSON by --json.

    python tests/bench/trainer_speed.py                          # CPU, and CUDA where a card is usable
    python tests/bench/trainer_speed.py --only cuda --json gpu.json
    python tests/bench/trainer_speed.py --case gpt2-124m-fp32 --rounds 1

"Ours" is the whole program, `python -m trainer RUN`, measured by the lines of its own metrics.jsonl: data loading and
logging are in the figure. The baseline is the step of the reference trainer as its author describes it: attention with
materialised scores, separate query, key and value, its own LayerNorm, AdamW tensor by tensor, nothing compiled; on CUDA
with fp16 autocast and a gradient scaler. It reads ready random batches and logs nothing. Rounds alternate, the best of
each side counts, because other programs on the machine only ever make one slower. Never a timed test.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.trainer.plain_gpt import PlainAdamW, PlainGPT  # noqa: E402
from trainer.arithmetic import flop_per_token  # noqa: E402
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig  # noqa: E402
from trainer.metrics import memory_gib  # noqa: E402

QUICKSTART = ModelConfig(vocab_size=257, context_length=128, n_layer=4, n_head=4, n_embd=96)
GPT2 = ModelConfig(tie_embeddings=True)
REFERENCE = ModelConfig()
CPU_THREADS = 2
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "4090": 165.2e12, "3090": 71e12}
"""Dense bf16 with fp32 accumulation, the figures of gptctl's machine table."""


@dataclass(frozen=True)
class Case:
    """One row: a shape, a precision, and how many steps each side does (the first ones do not count)."""

    name: str
    model: ModelConfig
    precision: str
    micro_batch: int
    steps: int
    warm_steps: int
    device: str = "cpu"

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batch * self.model.context_length


def cases(only: str | None, names: list[str]) -> list[Case]:
    """All rows this machine can measure."""
    found = [
        *(Case(f"quickstart-{p}", QUICKSTART, p, 16, 120, 20) for p in ("fp32", "bf16")),
        *(Case(f"gpt2-124m-{p}", GPT2, p, 4, 3, 1) for p in ("fp32", "bf16")),
    ]
    if torch.cuda.is_available():
        found += [Case(f"gpt2-163m-cuda-{size}", REFERENCE, "bf16", size, 60, 20, "cuda") for size in (12, 32, 64)]
    return [case for case in found if only in (None, case.device) and (not names or case.name in names)]


def ours(case: Case, folder: Path) -> dict[str, float]:
    """The trainer's own program on a file of random tokens; what its metrics say after the warm steps."""
    tokens = np.random.default_rng(1).integers(0, case.model.vocab_size, 2_000_000, dtype=np.uint16)
    save_file({"tokens": tokens}, folder / "train.safetensors")
    config = RunConfig(
        model=case.model,
        data=DataConfig(train_files=(str(folder / "train.safetensors"),), tokenizer="bytes"),
        train=TrainConfig(
            steps=case.steps,
            global_batch=case.micro_batch,
            micro_batch=case.micro_batch,
            precision=case.precision,
            log_every=10 if case.steps > 20 else 1,
            checkpoint_every=10**9,
            grad_clip=3.5,
        ),
        device=case.device,
    )
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    finished = subprocess.run(
        [sys.executable, "-m", "trainer", str(run)], cwd=ROOT, env=environment(), capture_output=True, check=False
    )
    if finished.returncode != 0:
        return {"failed": 1.0}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds: dict[str, float] = {}
    for line in (line for line in lines if line["step"] > case.warm_steps):
        for part, value in line["seconds"].items():
            seconds[part] = seconds.get(part, 0.0) + value
    training = sum(seconds.get(part, 0.0) for part in ("data", "forward_backward", "optimizer", "log"))
    overhead = seconds.get("data", 0.0) + seconds.get("log", 0.0)
    counted = [line for line in lines if line["step"] > case.warm_steps]
    return {
        "tokens_per_second": max(line["tokens_per_second"] for line in counted),
        "memory_gib": max(line["memory_gib"] for line in lines),
        "overhead_share": overhead / training,
        "optimizer_share": seconds.get("optimizer", 0.0) / training,
    }


def baseline(case: Case) -> dict[str, float]:
    """The reference step, in this process. Out of memory is an answer."""
    device = torch.device(case.device)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high" if case.device == "cuda" else "highest")
    model = case.model
    plain = PlainGPT(model.vocab_size, model.context_length, model.n_layer, model.n_head, model.n_embd).to(device)
    if model.tie_embeddings:
        plain.head.weight = plain.tokens.weight
    optimizer = PlainAdamW(list(plain.parameters()), rate=4e-4, decay=0.1, betas=(0.9, 0.999))
    scaler = torch.amp.GradScaler(case.device, enabled=case.device == "cuda")
    ids = torch.randint(model.vocab_size, (case.micro_batch, model.context_length + 1), device=device)
    times: list[float] = []
    try:
        for _ in range(case.steps):
            began = time.perf_counter()
            with autocast(case):
                loss = plain.loss(ids[:, :-1], ids[:, 1:])
            scaler.scale(loss).backward()
            for parameter in plain.parameters() if scaler.is_enabled() else ():
                parameter.grad /= scaler.get_scale()  # the optimizer is not torch's, so unscaling is by hand
            optimizer.step()
            loss.item()  # the reference reads the loss at every step
            times.append(time.perf_counter() - began)
    except torch.OutOfMemoryError:
        return {"failed": 1.0}
    window = 10 if case.steps > 20 else 1
    counted = [times[at : at + window] for at in range(case.warm_steps, case.steps - window + 1, window)]
    fastest = min(sum(part) / window for part in counted)
    return {"tokens_per_second": case.tokens_per_step / fastest, "memory_gib": memory_gib(device)}


def autocast(case: Case) -> contextlib.AbstractContextManager[object]:
    """On CUDA the reference trains in fp16; on the CPU both sides use the row's type."""
    if case.device == "cuda":
        return torch.autocast("cuda", dtype=torch.float16)
    return torch.autocast("cpu", dtype=torch.bfloat16) if case.precision == "bf16" else contextlib.nullcontext()


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(CPU_THREADS), "PYTHONPATH": str(ROOT)}


def baseline_in_own_process(case: Case, _: Path) -> dict[str, float]:
    """Its own process, so that its peak memory is its own."""
    finished = subprocess.run(
        [sys.executable, __file__, "--baseline", case.name],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        return {"failed": 1.0}
    answer: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def best(sides: list[dict[str, float]]) -> dict[str, float]:
    """The round with the most tokens per second."""
    return max(sides, key=lambda side: side.get("tokens_per_second", 0.0))


def measure(case: Case, rounds: int) -> dict[str, object]:
    """One row of the table."""
    measured: dict[str, list[dict[str, float]]] = {"ours": [], "baseline": []}
    sides: dict[str, Callable[[Case, Path], dict[str, float]]] = {"ours": ours, "baseline": baseline_in_own_process}
    for _ in range(rounds):
        for side, work in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                measured[side].append(work(case, Path(folder)))
    mine, theirs = best(measured["ours"]), best(measured["baseline"])
    rate, other = mine.get("tokens_per_second", 0.0), theirs.get("tokens_per_second", 0.0)
    peak = peak_flops() if case.device == "cuda" else 0.0
    return {
        "case": case.name,
        "tokens_per_step": case.tokens_per_step,
        "ours": mine,
        "baseline": theirs,
        "ratio": rate / other if other else None,
        "mfu": rate * flop_per_token(case.model) / peak if peak else None,
        "baseline_mfu": other * flop_per_token(case.model) / peak if peak else None,
    }


def peak_flops() -> float:
    name = torch.cuda.get_device_name()
    return next((value for key, value in PEAK_FLOPS.items() if key in name), 0.0)


def table(rows: list[dict[str, object]]) -> str:
    """For people; the JSON has more."""
    head = f"{'case':24} {'ours tok/s':>11} {'base tok/s':>11} {'ratio':>6} {'MFU':>6} {'GiB':>6} {'base':>6} {'data+log':>9}"  # noqa: E501
    lines = [head]
    for row in rows:
        mine, theirs = row["ours"], row["baseline"]
        assert isinstance(mine, dict)
        assert isinstance(theirs, dict)
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
        lines.append(
            f"{row['case']:24} {mine.get('tokens_per_second', 0):11,.0f} {theirs.get('tokens_per_second', 0):11,.0f} "
            f"{ratio:>6} {mfu:>6} {mine.get('memory_gib', 0):6.2f} {theirs.get('memory_gib', 0):6.2f} "
            f"{mine.get('overhead_share', 0):9.2%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("cpu", "cuda"))
    parser.add_argument("--case", action="append", default=[], help="only this row; repeatable")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--baseline", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.baseline:
        torch.set_num_threads(CPU_THREADS)
        (case,) = cases(None, [asked.baseline])
        print(json.dumps(baseline(case)))
        return
    rows = []
    for case in cases(asked.only, asked.case):
        rows.append(measure(case, asked.rounds))
        print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU was available"
    summary = {
        "torch": torch.__version__,
        "gpu": device,
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg(),
        "rows": rows,
    }
    print(
        table(rows) + f"\ntorch {torch.__version__}, {CPU_THREADS} CPU threads, {device}, load {os.getloadavg()[0]:.1f}"
    )
    if asked.json:
        asked.json.write_text(json.dumps(summary, indent=1, default=dataclasses.asdict) + "\n")


if __name__ == "__main__":
    main()
