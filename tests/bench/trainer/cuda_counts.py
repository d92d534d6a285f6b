"""What a step of the trainer asks of a GPU, counted on a stand-in for CUDA: kernels, products, waits, copies, memory.

    GPTCTL_STAND_IN_CUDA=DIR python -m tests.bench.trainer.cuda_counts                  # this checkout
    GPTCTL_STAND_IN_CUDA=DIR python -m tests.bench.trainer.cuda_counts --before REV     # beside another commit

DIR has venv/bin/python-wrapper: torch's CUDA build on libraries that count and compute nothing. No figure is a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.figure import CannotRun, Figure
from tests.support.files.repository import REPOSITORY

VARIABLE = "GPTCTL_STAND_IN_CUDA"
WORKER = REPOSITORY / "tests/support/machines/counted_steps.py"
COLUMNS = (
    "kernels", "triton", "gemms", "syncs", "syncs_of_a_log_line", "copies", "collectives", "allocated_mib",
    "reserved_mib", "pinned_mib",
)  # fmt: skip
DEADLINE_S = 900
CASES = [
    {"optimizer": optimizer, "precision": precision, "accumulation": accumulation}
    for optimizer, precision, accumulation in itertools.product(("adamw", "muon"), ("fp32", "fp16", "bf16"), (1, 4))
]
COMPILED = [{"optimizer": name, "precision": "bf16", "accumulation": 1, "compile": True} for name in ("adamw", "muon")]
LARGE = [
    {"model": "163m", "optimizer": "adamw", "precision": "bf16", "accumulation": 1, "compile": compiled}
    for compiled in (False, True)
]
SHARDED = [{"optimizer": name, "precision": "bf16", "accumulation": 1, "zero_stage": 1} for name in ("adamw", "muon")]


def counted(tree: Path, ranks: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The counts of each case by the trainer of that checkout. Raises CannotRun without a stand-in."""
    machine = os.environ.get(VARIABLE, "")
    if not machine:
        raise CannotRun(f"{VARIABLE} names no folder with a stand-in for CUDA")
    python = f"{machine}/venv/bin/python-wrapper"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, *launch, str(WORKER), folder, json.dumps(cases)],
            env={**os.environ, "FAKE_GPUS": str(ranks), "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != len(cases):
        raise CannotRun(f"the stand-in failed: {done.stderr.strip().splitlines()[-1:]}")
    return lines


def figures(*, quick: bool) -> Iterator[Figure]:
    """Waits for the GPU in a step and for a log line, by optimizer, on one rank."""
    cases = [case for case in CASES if case["precision"] == "bf16" and case["accumulation"] == 1]
    for found in counted(REPOSITORY, 1, cases[:1] if quick else cases):
        name = f"{found['optimizer']} bf16"
        yield Figure(f"CUDA stand-in, {name}: waits in a step", found["syncs"], "", "0", found["syncs"] == 0)
        yield Figure(f"CUDA stand-in, {name}: kernels in a step", found["kernels"], "")


def table(after: list[dict[str, Any]], before: list[dict[str, Any]]) -> str:
    """Markdown; where both are given, `before -> after`."""
    rows = [
        "| optimizer | precision | ranks | accumulation | " + " | ".join(COLUMNS) + " |",
        "|---" * (4 + len(COLUMNS)) + "|",
    ]
    for number, each in enumerate(after):
        old = before[number] if number < len(before) else each
        cells = [str(each[key]) if old[key] == each[key] else f"{old[key]} -> {each[key]}" for key in COLUMNS]
        extras = (
            (", 163M" if each.get("model") else "")
            + (", compiled" if each.get("compile") else "")
            + (", ZeRO" if each.get("zero_stage") else "")
        )
        head = [each["optimizer"] + extras, each["precision"], str(each["ranks"]), str(each["accumulation"])]
        rows.append("| " + " | ".join([*head, *cells]) + " |")
    return "\n".join(rows)


def main() -> None:
    """Prints the whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="a commit to count beside this checkout")
    parser.add_argument("--ranks", type=int, action="append", help="1 and 2 where not given; repeatable")
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="the compiled cases: 20 s of processor time each, and "
        "the first time minutes, until DIR/cache has the kernels",
    )
    parser.add_argument("--large", action="store_true", help="the 163M model on one rank, eager and compiled")
    given = parser.parse_args()
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        if given.before:
            archive = subprocess.run(
                ["git", "archive", given.before, "trainer"], cwd=REPOSITORY, capture_output=True, check=True
            )
            tree.mkdir()
            subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
        for ranks in given.ranks or ((1,) if given.large else (1, 2)):
            cases = LARGE if given.large else COMPILED if given.compiled else CASES + SHARDED * (ranks > 1)
            after += counted(REPOSITORY, ranks, cases)
            before += counted(tree, ranks, cases) if given.before else []
    print(table(after, before))


if __name__ == "__main__":
    main()
