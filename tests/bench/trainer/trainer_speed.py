"""How fast the trainer is, beside the reference implementation's step, in one call: a table on stdout, JSON by --json.

    python tests/bench/trainer/trainer_speed.py                          # CPU, and CUDA where a card is usable
    python tests/bench/trainer/trainer_speed.py --only cuda --json gpu.json
    python tests/bench/trainer/trainer_speed.py --case gpt2-124m-fp32 --rounds 1

"Ours" is the trainer's whole loop, measured by the lines of its own metrics.jsonl: data loading and logging are in it.
The baseline is the step of the reference trainer as its author describes it: attention with materialised scores,
separate query, key and value, its own LayerNorm, AdamW tensor by tensor, nothing compiled; on CUDA with fp16 autocast
and a gradient scaler. It reads one ready batch and logs nothing. nanoGPT's step is a third side at 124M parameters.
Rounds alternate and the best of each side counts, because other programs only ever make one slower; `cpu` is the ratio
of CPU seconds, which others hardly touch. Rows named `rest` leave out what both sides compute alike, products and
attention: so memory at 4 x 1,024 tokens takes seconds. bf16 is timed where the CPU has such products. Never a test.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.bench.figure import Figure, at_least, at_most, not_measured, within  # noqa: E402
from tests.bench.trainer.without_products import WithoutProducts, multiplies_bf16  # noqa: E402
from tests.support.files.nano_gpt import NanoAdamW, NanoGPT  # noqa: E402
from tests.support.files.plain_gpt import PlainAdamW, PlainGPT  # noqa: E402
from trainer.arithmetic import flop_per_token  # noqa: E402
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig  # noqa: E402
from trainer.training.allocator import keep_freed_memory  # noqa: E402
from trainer.training.loop import Progress, StopRequest, train  # noqa: E402
from trainer.training.metrics import Journal, memory_gib  # noqa: E402
from trainer.training.ranks import join  # noqa: E402
from trainer.training.start import Run  # noqa: E402

QUICKSTART = ModelConfig(vocab_size=257, context_length=128, n_layer=4, n_head=4, n_embd=96)
GPT2 = ModelConfig(tie_embeddings=True)
REFERENCE = ModelConfig()
CPU_THREADS = 2
OVERHEAD_LIMIT_PERCENT = 2.0
NO_BF16 = "this CPU has no products in bf16: torch emulates them at a fraction of the rate of fp32"
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
    products: bool = True
    """False: they answer zeros at once, as does attention."""

    @property
    def needs_bf16(self) -> bool:
        return self.device == "cpu" and self.precision == "bf16" and self.products

    @property
    def window(self) -> int:
        """Steps measured together."""
        return 10 if self.steps > 20 else 1

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batch * self.model.context_length


def cases(only: str | None, names: list[str]) -> list[Case]:
    """All rows this machine can measure."""
    found = [
        *(Case(f"quickstart-{p}", QUICKSTART, p, 16, 60, 20) for p in ("fp32", "bf16")),
        *(Case(f"gpt2-124m-{p}", GPT2, p, 1, 3, 1) for p in ("fp32", "bf16")),
        *(Case(f"gpt2-124m-{p}-rest", GPT2, p, 4, 3, 1, products=False) for p in ("fp32", "bf16")),
    ]
    if torch.cuda.is_available():
        found += [Case(f"gpt2-163m-cuda-{size}", REFERENCE, "bf16", size, 60, 20, "cuda") for size in (12, 32, 64)]
    return [case for case in found if only in (None, case.device) and (not names or case.name in names)]


class TimedJournal(Journal):
    """The trainer's journal, noting this process's CPU seconds at each line: they do not care who else is computing."""

    def __init__(self, run_folder: Path) -> None:
        super().__init__(run_folder)
        self.lines: list[dict[str, Any]] = []
        self.cpu_s: list[float] = []

    def metrics(self, line: Mapping[str, Any]) -> None:
        self.lines.append(dict(line))
        self.cpu_s.append(time.process_time())
        super().metrics(line)


def config_of(case: Case, folder: Path) -> RunConfig:
    """A run of the case on a file of random tokens, logging as often as a real one or, where steps are few, each."""
    tokens = np.random.default_rng(1).integers(0, case.model.vocab_size, 2_000_000, dtype=np.uint16)
    save_file({"tokens": tokens}, folder / "train.safetensors")
    return RunConfig(
        model=case.model,
        data=DataConfig(train_files=(str(folder / "train.safetensors"),), tokenizer="bytes"),
        train=TrainConfig(
            steps=case.steps,
            global_batch=case.micro_batch,
            micro_batch=case.micro_batch,
            precision=case.precision,
            log_every=case.window,
            checkpoint_every=10**9,
            grad_clip=3.5,
        ),
        device=case.device,
    )


def ours(case: Case) -> dict[str, float]:
    """The trainer's own loop, data loading and logging included; what its metrics say after the warm steps."""
    keep_freed_memory()  # as the program does on a CPU; it changes nothing on CUDA
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = join(case.device, timeout_s=60)
        journal = TimedJournal(folder)
        with contextlib.redirect_stdout(sys.stderr):
            train(Run(folder, config_of(case, folder), world, journal), StopRequest(folder), Progress())
    counted = [at for at, line in enumerate(journal.lines) if line["step"] > case.warm_steps]
    seconds = {part: 0.0 for part in ("data", "forward_backward", "optimizer", "log")}
    for at in counted:
        for part in seconds:
            seconds[part] += journal.lines[at]["seconds"].get(part, 0.0)
    return {
        "tokens_per_second": max(journal.lines[at]["tokens_per_second"] for at in counted),
        "cpu_s_per_step": min(journal.cpu_s[at] - journal.cpu_s[at - 1] for at in counted) / case.window,
        "memory_gib": max(line["memory_gib"] for line in journal.lines),
        "overhead_share": (seconds["data"] + seconds["log"]) / sum(seconds.values()),
        "optimizer_share": seconds["optimizer"] / sum(seconds.values()),
    }


BASELINES: dict[str, tuple[Any, Any]] = {"baseline": (PlainGPT, PlainAdamW), "nano": (NanoGPT, NanoAdamW)}
"""The reference trainer's step, and nanoGPT's."""


def baseline(case: Case, side: str) -> dict[str, float]:
    """A step of that side, in this process. Out of memory is an answer."""
    model_of, optimizer_of = BASELINES[side]
    device = torch.device(case.device)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high" if case.device == "cuda" else "highest")
    model = case.model
    plain = model_of(model.vocab_size, model.context_length, model.n_layer, model.n_head, model.n_embd).to(device)
    if model.tie_embeddings and side == "baseline":
        plain.head.weight = plain.tokens.weight
    optimizer = optimizer_of(list(plain.parameters()), rate=4e-4, decay=0.1, betas=(0.9, 0.999))
    scaler = torch.amp.GradScaler(case.device, enabled=case.device == "cuda")
    ids = torch.randint(model.vocab_size, (case.micro_batch, model.context_length + 1), device=device)
    marks = [(time.perf_counter(), time.process_time())]
    try:
        for _ in range(case.steps):
            with autocast(case):
                loss = plain.loss(ids[:, :-1], ids[:, 1:])
            scaler.scale(loss).backward()
            for parameter in plain.parameters() if scaler.is_enabled() else ():
                parameter.grad /= scaler.get_scale()  # the optimizer is not torch's, so unscaling is by hand
            optimizer.step()
            loss.item()  # the reference reads the loss at every step
            marks.append((time.perf_counter(), time.process_time()))
    except torch.OutOfMemoryError:
        return {"failed": 1.0}
    ends = range(case.warm_steps + case.window, len(marks), case.window)
    wall_s, cpu_s = (min(marks[at][i] - marks[at - case.window][i] for at in ends) / case.window for i in (0, 1))
    return {
        "tokens_per_second": case.tokens_per_step / wall_s,
        "cpu_s_per_step": cpu_s,
        "memory_gib": memory_gib(device),
    }


def autocast(case: Case) -> contextlib.AbstractContextManager[object]:
    """On CUDA the reference trains in fp16; on the CPU both sides use the row's type."""
    if case.device == "cuda":
        return torch.autocast("cuda", dtype=torch.float16)
    return torch.autocast("cpu", dtype=torch.bfloat16) if case.precision == "bf16" else contextlib.nullcontext()


def in_own_process(side: str, case: Case) -> dict[str, float]:
    """So that its peak memory is its own. Waiting threads sleep instead of spinning, on both sides."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(CPU_THREADS), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, __file__, "--worker", side, "--case", case.name]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        print(finished.stderr[-2000:], file=sys.stderr)
        return {"failed": 1.0}
    answer: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def best(sides: list[dict[str, float]]) -> dict[str, float]:
    """The round with the most tokens per second."""
    return max(sides, key=lambda side: side.get("tokens_per_second", 0.0))


def measure(case: Case, rounds: int, asked: tuple[str, ...] = ()) -> dict[str, object]:
    """One row of the table."""
    sides = ["ours", *(["baseline"] if case.products else []), *(["nano"] if case.model is GPT2 else [])]
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in sides if not asked or side in asked}
    for _ in range(rounds):
        for side, results in measured.items():
            results.append(in_own_process(side, case))
    mine, theirs = best(measured["ours"]), best(measured.get("baseline", [{}]))
    rate, other = mine.get("tokens_per_second", 0.0), theirs.get("tokens_per_second", 0.0)
    card = torch.cuda.get_device_name() if case.device == "cuda" else ""
    peak = next((value for key, value in PEAK_FLOPS.items() if key in card), 0.0)
    return {
        "case": case.name,
        "tokens_per_step": case.tokens_per_step,
        "ours": mine,
        "baseline": theirs,
        "nano": best(measured.get("nano", [{}])),
        "ratio": rate / other if other else None,
        "cpu_ratio": theirs.get("cpu_s_per_step", 0.0) / mine["cpu_s_per_step"] if "cpu_s_per_step" in mine else None,
        "mfu": rate * flop_per_token(case.model) / peak if peak else None,
        "baseline_mfu": other * flop_per_token(case.model) / peak if peak else None,
    }


def table(rows: list[dict[str, object]]) -> str:
    """For people; the JSON has more."""
    head = f"{'case':24} {'ours tok/s':>11} {'base tok/s':>11} {'ratio':>6} {'cpu':>6} {'MFU':>6} {'GiB':>6} {'base':>6} {'data+log':>9}"  # noqa: E501
    lines = [head]
    for row in rows:
        mine, theirs = row["ours"], row["baseline"]
        assert isinstance(mine, dict)
        assert isinstance(theirs, dict)
        ratio, cpu_ratio = (f"{row[key]:.2f}" if row[key] else "-" for key in ("ratio", "cpu_ratio"))
        mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
        lines.append(
            f"{row['case']:24} {mine.get('tokens_per_second', 0):11,.0f} {theirs.get('tokens_per_second', 0):11,.0f} "
            f"{ratio:>6} {cpu_ratio:>6} {mfu:>6} {mine.get('memory_gib', 0):6.2f} "
            f"{theirs.get('memory_gib', 0):6.2f} {mine.get('overhead_share', 0):9.2%}"
        )
        if isinstance(nano := row["nano"], dict) and "memory_gib" in nano and "memory_gib" in mine:
            cpu, memory = nano["cpu_s_per_step"] / mine["cpu_s_per_step"], mine["memory_gib"] / nano["memory_gib"]
            lines.append(f"{'  beside nanoGPT':24} processor time {cpu:.2f} x, memory {memory:.2f} x")
    return "\n".join(lines)


def figures(*, quick: bool) -> Iterator[Figure]:
    """The rows as lines of `make bench`."""
    for case in cases(None, ["quickstart-fp32"] if quick else []):
        name = f"trainer, {case.name}"
        if case.needs_bf16 and not multiplies_bf16():
            yield not_measured(name, NO_BF16)
            continue
        row = measure(case, rounds=1)
        mine, theirs = row["ours"], row["baseline"]
        assert isinstance(mine, dict)
        assert isinstance(theirs, dict)
        if "failed" in mine or "failed" in theirs:
            yield not_measured(name, f"failed: {'ours' if 'failed' in mine else 'the baseline, for lack of memory'}")
            continue
        yield from beside_nano(case, name, mine, row["nano"])
        if not case.products:
            continue
        aim = 5.0 if case.device == "cuda" else 1.5 if case.model is GPT2 else None
        rates = (mine["tokens_per_second"], theirs["tokens_per_second"])
        yield _compared(name, *rates, "tok/s", aim)
        cpu = (1 / mine["cpu_s_per_step"], 1 / theirs["cpu_s_per_step"])
        yield _compared(f"{name}, by processor time", *cpu, "step/s", None)
        yield Figure(
            f"{name}, memory", mine["memory_gib"], "GiB", theirs=theirs["memory_gib"], against="reference step",
            value=mine["memory_gib"] / theirs["memory_gib"],
        )  # fmt: skip
        yield within(f"{name}, data and logging", 100 * mine["overhead_share"], "%", OVERHEAD_LIMIT_PERCENT)
        if isinstance(row["mfu"], float):
            yield Figure(f"{name}, model FLOP utilisation", 100 * row["mfu"], "%")
    if not torch.cuda.is_available():
        yield not_measured("trainer, gpt2-163m-cuda", "no GPU was available")


def beside_nano(case: Case, name: str, mine: dict[str, float], nano: object) -> Iterator[Figure]:
    """Rate by processor time, and at 4 x 1,024 tokens memory."""
    if not isinstance(nano, dict) or "cpu_s_per_step" not in nano:
        return
    rates = (1 / mine["cpu_s_per_step"], 1 / nano["cpu_s_per_step"])
    yield at_least(f"{name}, by processor time", *rates, "step/s", "nanoGPT's step", 1.0)
    if not case.products:
        memories = (mine["memory_gib"], nano["memory_gib"])
        yield at_most(f"{name}, memory", *memories, "GiB", "nanoGPT's step", 0.65)


def _compared(name: str, ours: float, theirs: float, unit: str, aim: float | None) -> Figure:
    if aim is not None:
        return at_least(name, ours, theirs, unit, "reference step", aim)
    return Figure(name, ours, unit, theirs=theirs, against="reference step", value=ours / theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("cpu", "cuda"))
    parser.add_argument("--case", action="append", default=[], help="only this row; repeatable")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--worker", choices=("ours", "baseline", "nano"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        torch.set_num_threads(CPU_THREADS)
        (case,) = cases(None, asked.case)
        with contextlib.nullcontext() if case.products else WithoutProducts():
            print(json.dumps(ours(case) if asked.worker == "ours" else baseline(case, asked.worker)))
        return
    rows = []
    for case in cases(asked.only, asked.case):
        if case.needs_bf16 and not multiplies_bf16():
            print(f"{case.name}: {NO_BF16}", file=sys.stderr)
            continue
        rows.append(measure(case, asked.rounds))
        print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU was available"
    summary = {"torch": torch.__version__, "gpu": device, "date": time.strftime("%Y-%m-%d"), "rows": rows}
    print(
        table(rows) + f"\ntorch {torch.__version__}, {CPU_THREADS} CPU threads, {device}, load {os.getloadavg()[0]:.1f}"
    )
    if asked.json:
        asked.json.write_text(json.dumps(summary, indent=1, default=dataclasses.asdict) + "\n")


if __name__ == "__main__":
    main()
