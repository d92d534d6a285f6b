"""One rank of the trainer on a stand-in for CUDA, run after run in one process: what each kind of step asks of the GPU.

It runs in the stand-in's Python with PYTHONPATH at the trainer to count, and prints one JSON line per run::

    python-wrapper counted_steps.py FOLDER '[{"optimizer": "muon", "precision": "fp16", "accumulation": 4}]'

A run takes 18 steps. The 13th is counted as it is, the 15th and 16th for what a log line adds: DDP times its first ten
steps and waits for the GPU in them. Reserved memory depends on what earlier runs of the process have left in pieces;
allocated memory does not.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig
from trainer.training import finish, loop, ranks
from trainer.training.loop import Progress, StopRequest
from trainer.training.metrics import Journal
from trainer.training.start import Run

MODELS = {"small": ModelConfig(n_layer=4, n_embd=256, n_head=4, vocab_size=8192, context_length=512)}
MODELS["163m"] = ModelConfig()
MICRO_BATCH = {"small": 4, "163m": 12}
STEPS, PLAIN, LOGGED = 18, 13, 15
NAMES = ("kernels", "gemms", "syncs", "copies", "mallocs", "pinned_allocations", "events", "collectives", "pinned")
KNOWN = {item.name for item in dataclasses.fields(TrainConfig)}


def counts() -> dict[str, int]:
    """What the stand-in has counted in this process."""
    values = (ctypes.c_long * 16)()
    ctypes.CDLL(os.environ["FAKE_CUDA"] + "/lib/libfakecuda.so").fakecuda_counts(values)
    return dict(zip(NAMES, values, strict=False)) | {"triton": ctypes.CDLL("libcuda.so.1").fakecuda_triton()}


def config_of(folder: Path, case: dict[str, Any], world: ranks.World) -> RunConfig:
    """The run of a case; keys that this trainer does not know are left out."""
    accumulation, size = case.pop("accumulation"), case.pop("model", "small")
    model, micro_batch = MODELS[size], MICRO_BATCH[size]
    train = {
        "steps": STEPS, "micro_batch": micro_batch, "global_batch": micro_batch * world.size * accumulation,
        "grad_clip": 1.0, "log_every": LOGGED, "checkpoint_every": STEPS, "validate_every": STEPS, "compile": False,
    } | case  # fmt: skip
    tokens = folder / "tokens.bin"
    if world.leads and not tokens.exists():
        np.random.default_rng(0).integers(0, MODELS["small"].vocab_size, 2_000_000, dtype=np.uint16).tofile(tokens)
    data = DataConfig(train_files=(str(tokens),), validation_tokens=8192, tokenizer="bytes", dtype="uint16")
    known = TrainConfig(**{key: value for key, value in train.items() if key in KNOWN})
    return RunConfig(model=model, data=data, device="cuda", train=known)


def counted(folder: Path, case: dict[str, Any], world: ranks.World) -> dict[str, Any]:
    """Trains the case and returns its counts."""
    name = "-".join(map(str, case.values()))
    config = config_of(folder, dict(case), world)
    run_folder = folder / f"{name}-{world.size}"
    run_folder.mkdir(exist_ok=True)
    if world.size > 1:
        torch.distributed.barrier()
    seen: list[dict[str, int]] = []
    train_step = loop.train_step

    def counting(*arguments: Any) -> Any:
        seen.append(counts())
        return train_step(*arguments)

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loop.train_step = counting
    try:
        run = Run(run_folder, config, world, Journal(run_folder, enabled=False))
        loop.train(run, StopRequest(run_folder), Progress())
    finally:
        loop.train_step = train_step
    step = {key: seen[PLAIN][key] - seen[PLAIN - 1][key] for key in seen[0]}
    both = {key: seen[LOGGED + 1][key] - seen[LOGGED - 1][key] for key in seen[0]}
    return {
        **case,
        "ranks": world.size,
        **{key: step[key] for key in ("kernels", "triton", "gemms", "syncs", "copies", "collectives")},
        "syncs_of_a_log_line": both["syncs"] - 2 * step["syncs"],
        "allocated_mib": torch.cuda.max_memory_allocated() // 2**20,
        "reserved_mib": torch.cuda.max_memory_reserved() // 2**20,
        "pinned_mib": counts()["pinned"] // 2**20,
    }


def main() -> None:
    """All cases of the command line."""
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    world = ranks.join("cuda", 300)
    finish.leave = lambda _: None  # the next run takes the same ranks
    for case in cases:
        result = counted(folder, case, world)
        if world.leads:
            print(json.dumps(result), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
