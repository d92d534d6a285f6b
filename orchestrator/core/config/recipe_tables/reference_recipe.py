"""A run of the reference trainer, its model.json and train.json, as the values of a recipe. Pure; reads no file.

What these files leave out are the defaults of its code: AdamW with torch's betas, decay on all tensors, learning rate
4e-4, weight decay 0.1, fp16 with a gradient scaler, seed 42, torch's own initialisation.

Example: `reference_recipe("8xa100m40-baseline", model, train, gpus=8)["train"]["global_batch"]` -> 96
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.core.errors import UserError

MODEL_KEYS = {
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
    "drop_rate": "dropout",
    "qkv_bias": "qkv_bias",
    "tie_weights": "tie_embeddings",
}
TRAIN_KEYS = frozenset({
    "microbatch_size", "gradient_accumulation_steps", "checkpoint_interval", "dataset", "min_train_tokens",
    "start_train_token", "start_val_token", "clipping_max_norm", "weight_decay", "learning_rate",
    "schedule_learning_rate", "warmup_period_percent", "use_amp", "random_seed", "validation_interval",
    "validation_batches",
})  # fmt: skip
VALIDATION_SEQUENCES = 960
"""Its present code does not validate while it trains; these are what gptctl's own recipes for it take."""


def gpus_in(folder_name: str) -> int | None:
    """The number of GPUs in a name such as `8xa100m40-baseline`."""
    found = re.match(r"(\d{1,3})x", folder_name)
    return int(found[1]) if found else None


def reference_recipe(
    name: str, model: Mapping[str, Any], train: Mapping[str, Any], *, gpus: int
) -> dict[str, dict[str, object] | str]:
    """The recipe's tables. Raises UserError for a key that has no counterpart, or one that is missing."""
    _check(
        model, frozenset(MODEL_KEYS), "model.json", {"vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"}
    )
    _check(train, TRAIN_KEYS, "train.json", {"microbatch_size", "dataset", "min_train_tokens"})
    batch = int(train["microbatch_size"]) * int(train.get("gradient_accumulation_steps", 1)) * gpus
    interval = int(train.get("checkpoint_interval") or train.get("validation_interval") or 617)
    context = int(model["context_length"])
    sequences = train.get("validation_batches", 0) * train["microbatch_size"] or VALIDATION_SEQUENCES
    return {
        "name": re.sub(r"[^a-z0-9_.-]+", "_", name.lower()).strip("_.-") or "reference",
        "description": f"The reference trainer's run {name}, on {gpus} GPUs, from its model.json and train.json",
        "model": {**{ours: model[theirs] for theirs, ours in MODEL_KEYS.items() if theirs in model}, "init": "torch"},
        "data": {
            "source": f"hf://{train['dataset']}",
            "start_token": int(train.get("start_train_token", 0)),
            "order": "sequential",
            "validation": {"start_token": int(train.get("start_val_token", 0)), "tokens": sequences * context},
        },
        "train": {**_schedule(train), **_optimizer(train), "tokens": _tokens(train), "global_batch": batch,
                  "checkpoint_every": interval, "validate_every": interval},
        "eval": {"prompts": ["Every effort moves you"]},
    }  # fmt: skip


def _check(found: Mapping[str, Any], known: frozenset[str], file: str, needed: set[str]) -> None:
    for key in sorted(found.keys() - known):
        raise UserError(f"{file}: {key} has no counterpart in a recipe", "remove it from a copy of the folder, or wait")
    for key in sorted(needed - found.keys()):
        raise UserError(f"{file}: {key} is missing", "name a run folder of the reference trainer")


def _tokens(train: Mapping[str, Any]) -> int | str:
    """-1 means all; both trainers round a number up to a whole global batch."""
    return "all" if train["min_train_tokens"] == -1 else int(train["min_train_tokens"])


def _optimizer(train: Mapping[str, Any]) -> dict[str, object]:
    mixed = bool(train.get("use_amp", True))
    clip = train.get("clipping_max_norm")
    return {
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": float(train.get("weight_decay", 0.1)),
        "decay": "all",
        **({} if clip is None else {"grad_clip": float(clip)}),
        "precision": "fp16" if mixed else "fp32",
        "tf32": mixed,
        "seed": int(train.get("random_seed", 42)),
    }


def _schedule(train: Mapping[str, Any]) -> dict[str, object]:
    rate = float(train.get("learning_rate", 4e-4))
    if not train.get("schedule_learning_rate", False):
        return {"learning_rate": rate, "schedule": "constant", "warmup_fraction": 0.0}
    warmup = train.get("warmup_period_percent", 0) / 100
    return {
        "learning_rate": rate,
        "schedule": "cosine",
        "warmup_fraction": warmup,
        "min_learning_rate_fraction": 0.1,
    }
