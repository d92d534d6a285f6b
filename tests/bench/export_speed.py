"""How long `gptctl export` takes for a model of GPT-2 small's size, and how much memory.

    python -m tests.bench.export_speed               # the lines of `make bench --only export`

The whole command as a user types it: weights compared with their manifest, 124 million parameters, tied, in fp32 and
random, the tokenizer's files, the card and its chart, everything hashed. The peak is that of the largest of its
processes. The best of a few rounds counts, because what else runs on the machine only ever makes one slower.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.ledger import Ledger, RunRecord, new_run_id
from tests.bench.figure import Figure, within
from tests.support.files.texts import gpt2_vocabulary
from trainer.contract import ModelConfig
from trainer.run_files import BEST, CHECKPOINTS, MANIFEST_FILE, META_FILE, METRICS, MODEL_FILE
from trainer.weights.gpt2_layout import expected_shapes

REPOSITORY = Path(__file__).resolve().parents[2]
GPT2_SMALL = ModelConfig(
    vocab_size=50257, context_length=1024, n_layer=12, n_head=12, n_embd=768, qkv_bias=True, tie_embeddings=True
)
STEP = 1000
LIMIT_S = 5.0
LIMIT_GB = 2.0
MEASURED = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime,
                  "peak_gb": used.ru_maxrss * 1024 / 1e9}))
"""
"""A process of its own, since the peak of children is that of all there ever were."""


def checkpoint(folder: Path) -> None:
    """One as the trainer leaves it, of random weights."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    shapes = expected_shapes(GPT2_SMALL)
    save_file({name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()},
              folder / MODEL_FILE)  # fmt: skip
    meta = {"step": STEP, "model": dataclasses.asdict(GPT2_SMALL), "tokenizer": "gpt2", "loss": 3.4, "val_loss": 3.5}
    (folder / META_FILE).write_text(json.dumps(meta))
    files = {
        name: {"size_bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        for name in (MODEL_FILE, META_FILE)
    }
    (folder / MANIFEST_FILE).write_text(json.dumps({"files": files}))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill(home: Path) -> str:
    """A ledger with one run whose best checkpoint is here; its id."""
    shape = ["model.qkv_bias=true", "model.tie_embeddings=true"]
    recipe = load_recipe(str(REPOSITORY / "recipes/chinchilla_163m_baseline.toml"), shape)
    plan = make_plan(recipe, None, machine_type("8xA100-40GB"), None, now=time.time())
    with Ledger.open(home, time.time) as ledger:
        now = time.time()
        run = RunRecord(
            id=new_run_id(recipe.name, now), recipe=recipe.name, host="box", machine="8xA100-40GB", created_at=now,
            recipe_digest=recipe.digest, recipe_data=recipe.resolved(), plan=plan, step=STEP, total_steps=STEP,
        )  # fmt: skip
        ledger.add_run(run)
    mirror = home / "runs" / run.id
    checkpoint(mirror / CHECKPOINTS / BEST)
    lines = ({"step": step, "tokens": step * 98_304, "loss": 11 / step**0.17} for step in range(1, STEP + 1))
    (mirror / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run.id


def measured(home: Path, run: str, to: Path) -> dict[str, Any]:
    """What one export took."""
    command = [sys.executable, "-m", "orchestrator", "export", run, "--to", str(to)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], check=True, capture_output=True, timeout=120,
        env={**os.environ, "GPTCTL_HOME": str(home)}, cwd=REPOSITORY,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def figures(*, quick: bool) -> Iterator[Figure]:
    """Seconds by the clock and of processors, and gigabytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TIKTOKEN_CACHE_DIR"] = str(gpt2_vocabulary(folder / "vocabulary"))
        run = fill(folder / "home")
        rounds = [measured(folder / "home", run, folder / f"round-{round_}") for round_ in range(1 if quick else 3)]
        yield within("export of 124M", min(each["wall_s"] for each in rounds), "s", LIMIT_S)
        yield Figure("export of 124M, of processors", min(each["cpu_s"] for each in rounds), "s")
        yield within("export of 124M, memory", max(each["peak_gb"] for each in rounds), "GB", LIMIT_GB)


if __name__ == "__main__":
    for figure in figures(quick="--quick" in sys.argv):
        print(figure.line(), flush=True)
