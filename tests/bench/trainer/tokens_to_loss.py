"""How many of the baseline's tokens a stack needs to reach the baseline's loss, over corpora and seeds; with the noise.

    BENCH="python -m tests.bench.trainer.tokens_to_loss --to runs-of-bench"
    $BENCH --python                                            # the source of Python's library; an hour or two
    $BENCH --debian --stories --text shakespeare=tiny.txt      # other texts
    $BENCH --debian --size 10m --seeds 1 --stacks baseline plain-0.5
    $BENCH --debian --stories --seeds                          # trains nothing, prints the table

Byte-level models of 0.9 or 9.7 million parameters, fp32, one thread and the lowest priority. Each run is a process of
its own; one that has finished is never repeated, so the command may be ended and started again, or started twice to
take two cores. The baseline is plain GPT-2 by AdamW; a stack runs with a part of its steps and a schedule of its own,
since a loss read from the middle of a longer schedule would flatter the baseline. The table has every finished run.
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

from tests.bench.trainer import short_stories
from trainer.arithmetic.schedule import Course, steps_for_stages
from trainer.config.config_tables import RateFactors, Stage
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig
from trainer.run_files import CONFIG, EVENTS

HELD_OUT = 100_000
VALIDATION_TOKENS = 65_536
MOST_BYTES = 17_000_000
STORY_BYTES = 4_000_000
MOST_SEEDS = 9
LENGTH = 128
"""Tokens of a sequence."""
LINE = (0.25, 0.5)
"""Shares of the baseline's tokens between which a stack's loss is read off a line."""
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
class Size:
    """`steps`: of the baseline, of `batch` sequences of 128 tokens."""

    model: Mapping[str, int]
    batch: int
    steps: int


SIZES = {
    "0.9m": Size({"vocab_size": 257, "context_length": 128, "n_layer": 4, "n_head": 4, "n_embd": 128}, 8, 400),
    "10m": Size({"vocab_size": 257, "context_length": 128, "n_layer": 12, "n_head": 4, "n_embd": 256}, 16, 100),
}


@dataclass(frozen=True)
class Stack:
    """`name` and `share` (of the baseline's tokens) together are its key: `plain-0.5`."""

    name: str
    share: float
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """As `--stacks` names it."""
        return self.name if self.share == 1 else f"{self.name}-{self.share}"


ZERO = {"zero_init": True}
MUON = {key: PLAIN[key] for key in ("optimizer", "split_qkv", "learning_rate", "rate_factors")}
WSD = {key: PLAIN[key] for key in ("schedule", "decay_fraction", "warmup_fraction", "min_learning_rate_fraction")}
BASE = Stack("baseline", 1.0, {}, BASELINE)
STACKS = (
    BASE,
    Stack("plain", 0.5, ZERO, PLAIN),
    Stack("plain", 0.25, ZERO, PLAIN),
    Stack("modded", 0.5, {**ZERO, **MODDED}, PLAIN),
    Stack("modded", 0.25, {**ZERO, **MODDED}, PLAIN),
    Stack("baseline", 0.5, {}, BASELINE),
    Stack("muon-alone", 0.5, {}, {**BASELINE, **MUON}),
    Stack("schedule-alone", 0.5, {}, {**BASELINE, **WSD}),
    Stack("zero-init-alone", 0.5, ZERO, BASELINE),
    Stack("plain-short-first", 0.5, ZERO, {**PLAIN, "stages": (Stage(0.4, 16, 64),)}),
    Stack("plain-small-first", 0.5, ZERO, {**PLAIN, "stages": (Stage(0.4, 4, 128),)}),
    Stack("baseline-half-rate", 1.0, {}, {**BASELINE, "learning_rate": 1.5e-3}),
)
USUAL = ("baseline", "plain-0.5", "plain-0.25")


def main() -> int:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the runs and corpora are kept")
    parser.add_argument("--size", choices=SIZES, default="0.9m", help="parameters of the model (default: %(default)s)")
    parser.add_argument("--stacks", nargs="+", choices=[stack.key for stack in STACKS], default=USUAL, metavar="STACK")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="to train; none: only the table")
    parser.add_argument("--python", action="store_true", help="the source of Python's library")
    parser.add_argument("--debian", action="store_true", help="English text of this machine's Debian packages")
    parser.add_argument("--stories", action="store_true", help="short stories by a seeded grammar, 4 MB")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE", help="this text; repeatable")
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    names = [write_corpus(given.to, name, text) for name, text in corpora(given)]
    for seed in given.seeds:
        for name in names:
            for stack in (stack for stack in STACKS if stack.key in given.stacks):
                run(Case(given.to, name, stack, given.size, seed))
    print("\n".join(table(given.to, names)))
    return 0


@dataclass(frozen=True)
class Case:
    """One run; all are below `to`."""

    to: Path
    corpus: str
    stack: Stack
    size: str
    seed: int

    @property
    def folder(self) -> Path:
        """By what it is."""
        return self.to / f"{self.corpus}-{self.size}-{self.stack.key}-seed{self.seed}"

    @property
    def steps(self) -> int:
        """As many as see its share of the baseline's tokens."""
        size = SIZES[self.size]
        wanted = round(self.stack.share * size.steps) * size.batch * LENGTH
        return steps_for_stages(wanted, self.stack.train.get("stages", ()), size.batch, LENGTH)

    @property
    def tokens(self) -> int:
        """That it trains on."""
        return Course.of(self.stack.train.get("stages", ()), self.steps, SIZES[self.size].batch, LENGTH).tokens(
            self.steps
        )

    @property
    def loss(self) -> float | None:
        """The validation loss after the last step; None where the run has not ended well."""
        lines = (self.folder / EVENTS).read_text().splitlines() if (self.folder / EVENTS).exists() else []
        events = [json.loads(line) for line in lines]
        if not any(event["event"] == "finished" for event in events):
            return None
        return next((float(event["val_loss"]) for event in reversed(events) if event["event"] == "validated"), None)


def corpora(given: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """Name and text of each."""
    if given.python:
        library = Path(sysconfig.get_paths()["stdlib"])
        yield "python-stdlib", b"\n".join(path.read_bytes() for path in shuffled(library.glob("*.py")))
    if given.debian:
        folders = (Path("/usr/share/doc"), Path("/usr/share/common-licenses"), *Path("/usr/share/man").glob("man[0-9]"))
        yield "debian", b"\0".join(english(path for folder in folders for path in folder.rglob("*")))
    if given.stories:
        yield "stories", short_stories.stories(STORY_BYTES)
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


def config_of(case: Case) -> RunConfig:
    """config.json of one run."""
    never, size = 10**6, SIZES[case.size]  # the last step is always validated
    return RunConfig(
        model=ModelConfig(**{**size.model, **case.stack.model}),
        data=DataConfig(
            train_files=(str(case.to.absolute() / f"{case.corpus}-train.bin"),),
            validation_files=(str(case.to.absolute() / f"{case.corpus}-val.bin"),),
            validation_tokens=VALIDATION_TOKENS,
            order="shuffled",
            tokenizer="bytes",
            dtype="uint16",
        ),
        train=TrainConfig(
            steps=case.steps,
            global_batch=size.batch,
            micro_batch=size.batch,
            precision="fp32",
            seed=case.seed,
            log_every=20,
            checkpoint_every=never,
            validate_every=never,
            **case.stack.train,
        ),
        device="cpu",
    )


def run(case: Case) -> None:
    """Trains in a process of its own, unless it has finished or another one is at it."""
    case.folder.mkdir(exist_ok=True)
    with (case.folder / "out").open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if case.loss is not None:
            return
        (case.folder / CONFIG).write_text(config_of(case).to_json())
        subprocess.run(
            ["nice", "-n", "19", sys.executable, "-m", "trainer", str(case.folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            check=False,
        )


def table(to: Path, names: Sequence[str]) -> Iterator[str]:
    """One row per corpus, size and stack, as Markdown; then per seed what a stack needs of the baseline's tokens."""
    yield "| text | parameters | stack | tokens | of the baseline's | loss, mean ± sd (by seed) | below baseline by |"
    yield "|---|---|---|---|---|---|---|"
    for name in names:
        for size in SIZES:
            baseline = losses_of(to, name, BASE, size)
            yield from (
                row(to, name, size, stack, losses, baseline)
                for stack in STACKS
                if (losses := losses_of(to, name, stack, size))
            )
    for name in names:
        for size in SIZES:
            yield from shares(to, name, size)


def row(
    to: Path, name: str, size: str, stack: Stack, losses: Mapping[int, float], baseline: Mapping[int, float]
) -> str:
    """The difference is the mean over the seeds that both have."""
    case = Case(to, name, stack, size, 0)
    mean = statistics.mean(losses.values())
    spread = f" ± {statistics.stdev(losses.values()):.4f}" if len(losses) > 1 else ""
    by_seed = ", ".join(f"{loss:.4f}" for loss in losses.values())
    pairs = [baseline[seed] - losses[seed] for seed in losses if seed in baseline]
    below = f"{statistics.mean(pairs):+.4f}" if pairs and stack is not BASE else ""
    cells = (name, size, stack.name, f"{case.tokens:,}", f"{stack.share:.2f}", f"{mean:.4f}{spread} ({by_seed})", below)
    return "| " + " | ".join(cells) + " |"


def shares(to: Path, name: str, size: str) -> Iterator[str]:
    """Of the baseline's tokens, per seed, for each stack that ran at both ends of LINE."""
    baseline = losses_of(to, name, BASE, size)
    for kind in ("plain", "modded"):
        few, many = (losses_of(to, name, Stack(kind, share), size) for share in LINE)
        reached = [
            share_to_reach(baseline[seed], {LINE[0]: few[seed], LINE[1]: many[seed]})
            for seed in sorted(baseline.keys() & few.keys() & many.keys())
        ]
        if reached:
            text = ", ".join(f"{share:.2f}" for share in reached)
            yield f"{name}, {size}: {kind} reaches the baseline's loss with {text} of its tokens, by seed"


def losses_of(to: Path, corpus: str, stack: Stack, size: str) -> dict[int, float]:
    """By seed, of the runs that have finished."""
    found = {seed: Case(to, corpus, stack, size, seed).loss for seed in range(1, MOST_SEEDS + 1)}
    return {seed: loss for seed, loss in found.items() if loss is not None}


def share_to_reach(loss: float, by_share: Mapping[float, float]) -> float:
    """The share at which a straight line over log(share) through the two points has that loss."""
    (low, high_loss), (high, low_loss) = sorted(by_share.items())
    slope = (low_loss - high_loss) / math.log(high / low)
    return low * math.exp((loss - high_loss) / slope)


if __name__ == "__main__":
    sys.exit(main())
