"""How many of the baseline's tokens a stack needs to reach the baseline's loss, over corpora and seeds; with the noise.

    python -m tests.bench.trainer.tokens_to_loss --to runs-of-bench                # Python's library; an hour or two
    python -m tests.bench.trainer.tokens_to_loss --to runs-of-bench --debian --text shakespeare=tiny.txt --seeds 1 2 3

Byte-level models of 0.9 million parameters, fp32, one thread and the lowest priority. Each run is a process of its own;
one that has finished is never repeated, so the command may be ended and started again, or started twice to take two
cores. The baseline is plain GPT-2 by AdamW; a stack runs with a part of its steps and a schedule of its own, since a
loss read from the middle of a longer schedule would flatter the baseline.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config_tables import RateFactors
from trainer.contract import CONFIG, EVENTS, DataConfig, ModelConfig, RunConfig, TrainConfig

HELD_OUT = 100_000
VALIDATION_TOKENS = 65_536
MOST_BYTES = 17_000_000
MODEL = {"vocab_size": 257, "context_length": 128, "n_layer": 4, "n_head": 4, "n_embd": 128}
BATCH = 8
BASELINE: dict[str, Any] = {"learning_rate": 3e-3, "weight_decay": 0.01, "grad_clip": 1.0}
PLAIN: dict[str, Any] = {
    **BASELINE,
    "optimizer": "muon",
    "split_qkv": True,
    "learning_rate": 1e-2,
    "schedule": "wsd",
    "decay_fraction": 0.6,
    "warmup_fraction": 0.02,
    "min_learning_rate_fraction": 0.0,
    "rate_factors": RateFactors(token_embedding=0.5, position_embedding=0.5, head=0.5, vectors=0.5),
}
MODDED = {"rope": True, "qk_norm": True, "activation": "relu2", "value_residual": True}


@dataclass(frozen=True)
class Stack:
    """`share`: of the baseline's tokens."""

    name: str
    share: float
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


STACKS = (
    Stack("AdamW (baseline)", 1.0, {}, BASELINE),
    Stack("plain stack", 0.5, {"zero_init": True}, PLAIN),
    Stack("plain stack", 0.25, {"zero_init": True}, PLAIN),
    Stack("modded stack", 0.25, {"zero_init": True, **MODDED}, PLAIN),
)


def main() -> int:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the runs and corpora are kept")
    parser.add_argument("--steps", type=int, default=400, help="of the baseline (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--debian", action="store_true", help="also English text of this machine's Debian packages")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE", help="also this text; repeatable")
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    names = [write_corpus(given.to, name, text) for name, text in corpora(given)]
    for seed in given.seeds:
        for name in names:
            for stack in STACKS:
                run(given.to, name, stack, given.steps, seed)
    print("\n".join(table(given.to, names, given.steps, given.seeds)))
    return 0


def corpora(given: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """Name and text of each."""
    library = Path(sysconfig.get_paths()["stdlib"])
    yield "python-stdlib", b"\n".join(path.read_bytes() for path in shuffled(library.glob("*.py")))
    if given.debian:
        folders = (Path("/usr/share/doc"), Path("/usr/share/common-licenses"), *Path("/usr/share/man").glob("man[0-9]"))
        yield "debian", b"\0".join(english(path for folder in folders for path in folder.rglob("*")))
    for text in given.text:
        name, _, file = text.partition("=")
        yield name, Path(file).read_bytes()


def english(paths: Iterator[Path]) -> Iterator[bytes]:
    """The ASCII texts among the files, each once, at most 20 kB of each, in a fixed random order."""
    seen = set()
    for path in shuffled(path for path in paths if path.is_file() and not path.is_symlink()):
        content = path.read_bytes()
        try:
            text = (gzip.decompress(content) if path.suffix == ".gz" else content)[:20_000]
        except (OSError, EOFError):
            continue
        digest = hashlib.sha256(text).digest()
        if len(text) >= 200 and text.isascii() and b"\0" not in text and digest not in seen:
            seen.add(digest)
            yield text


def shuffled(paths: Iterator[Path]) -> list[Path]:
    """In an order that depends on their names alone."""
    ordered = sorted(paths)
    random.Random(0).shuffle(ordered)
    return ordered


def write_corpus(to: Path, name: str, text: bytes) -> str:
    """Bytes as uint16 ids, headerless; the end is held out."""
    ids = np.frombuffer(text[: MOST_BYTES + HELD_OUT], np.uint8).astype("<u2")
    for part, side in (("train", ids[:-HELD_OUT]), ("val", ids[-HELD_OUT:])):
        if not (to / f"{name}-{part}.bin").exists():
            side.tofile(to / f"{name}-{part}.bin")
    return name


def config_of(to: Path, corpus: str, stack: Stack, steps: int, seed: int) -> RunConfig:
    """config.json of one run."""
    never = 10**6  # the last step is always validated
    return RunConfig(
        model=ModelConfig(**{**MODEL, **stack.model}),
        data=DataConfig(
            train_files=(str(to.absolute() / f"{corpus}-train.bin"),),
            validation_files=(str(to.absolute() / f"{corpus}-val.bin"),),
            validation_tokens=VALIDATION_TOKENS,
            order="shuffled",
            tokenizer="bytes",
            dtype="uint16",
        ),
        train=TrainConfig(
            steps=round(stack.share * steps),
            global_batch=BATCH,
            micro_batch=BATCH,
            precision="fp32",
            seed=seed,
            log_every=20,
            checkpoint_every=never,
            validate_every=never,
            **stack.train,
        ),
        device="cpu",
    )


def folder_of(to: Path, corpus: str, stack: Stack, steps: int, seed: int) -> Path:
    """The run's folder, by what it is."""
    return to / f"{corpus}-{stack.name.replace(' ', '_')}-{round(stack.share * steps)}-seed{seed}"


def run(to: Path, corpus: str, stack: Stack, steps: int, seed: int) -> None:
    """Trains in a process of its own, unless it has finished or another one is at it."""
    folder = folder_of(to, corpus, stack, steps, seed)
    folder.mkdir(exist_ok=True)
    with (folder / "out").open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if loss_of(folder) is not None:
            return
        (folder / CONFIG).write_text(config_of(to, corpus, stack, steps, seed).to_json())
        subprocess.run(
            ["nice", "-n", "19", sys.executable, "-m", "trainer", str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            check=False,
        )


def loss_of(folder: Path) -> float | None:
    """The validation loss after the last step; None where the run has not ended well."""
    lines = (folder / EVENTS).read_text().splitlines() if (folder / EVENTS).exists() else []
    events = [json.loads(line) for line in lines]
    if not any(event["event"] == "finished" for event in events):
        return None
    return next((float(event["val_loss"]) for event in reversed(events) if event["event"] == "validated"), None)


def table(to: Path, names: Sequence[str], steps: int, seeds: Sequence[int]) -> Iterator[str]:
    """One row per corpus and stack, as Markdown; then per corpus and seed what the plain stack needs."""
    yield "| corpus | stack | tokens | of the baseline's | validation loss, mean ± sd (seeds) | below the baseline by |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        baseline = math.nan
        for stack in STACKS:
            losses = list(losses_of(to, name, stack, steps, seeds).values())
            if not losses:
                continue
            mean = statistics.mean(losses)
            spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
            baseline = mean if stack.share == 1 else baseline
            below = "" if stack.share == 1 else f"{baseline - mean:+.4f}"
            tokens = round(stack.share * steps) * BATCH * MODEL["context_length"]
            row = (name, stack.name, f"{tokens:,}", f"{stack.share:.2f}", f"{mean:.4f}{spread} ({len(losses)})", below)
            yield "| " + " | ".join(row) + " |"
    for name in names:
        baseline, half, quarter = (losses_of(to, name, stack, steps, seeds) for stack in STACKS[:3])
        for seed in sorted(baseline.keys() & half.keys() & quarter.keys()):
            share = share_to_reach(baseline[seed], {0.5: half[seed], 0.25: quarter[seed]})
            yield f"{name}, seed {seed}: the plain stack reaches {baseline[seed]:.4f} with {share:.2f} of the tokens"


def losses_of(to: Path, corpus: str, stack: Stack, steps: int, seeds: Sequence[int]) -> dict[int, float]:
    """By seed, of the runs that have finished."""
    found = {seed: loss_of(folder_of(to, corpus, stack, steps, seed)) for seed in seeds}
    return {seed: loss for seed, loss in found.items() if loss is not None}


def share_to_reach(loss: float, by_share: Mapping[float, float]) -> float:
    """The share at which a straight line over log(share) through the two points has that loss."""
    (low, high_loss), (high, low_loss) = sorted(by_share.items())
    slope = (low_loss - high_loss) / math.log(high / low)
    return low * math.exp((loss - high_loss) / slope)


if __name__ == "__main__":
    sys.exit(main())
