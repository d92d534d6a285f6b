"""A task's model for others: adapters merged into the weights or in `peft`'s files, a head for classes as transformers
has it. numpy is enough.

Example::

    found, read = without_adapters(task, found, read)           # the tensors of a model without adapters
    planned = adapter_tensors(task.lora, found, read)           # under peft's names
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from trainer.config.task_config import CLASSIFY, LoraConfig, TaskConfig
from trainer.contract import ModelConfig
from trainer.tokens.tensor_file import Array, PlannedTensor
from trainer.weights.gpt2_layout import NotExpressibleError, StoredTensor, gpt2_name

A, B = ".lora_a", ".lora_b"
CLASSIFIER = "classifier.weight"
SCORE, LM_HEAD = "score.weight", "lm_head.weight"
PEFT = "base_model.model."
Found = Mapping[str, StoredTensor]
Read = Callable[[str], Array]


def without_adapters(task: TaskConfig, found: Found, read: Read) -> tuple[dict[str, StoredTensor], Read]:
    """The tensors of a plain model: W + alpha / rank * B A in place of W, A and B, and no head for classes."""
    plain = {name: tensor for name, tensor in found.items() if not name.endswith((A, B)) and name != CLASSIFIER}
    lora = task.lora
    if lora is None:
        return plain, read

    def merged(name: str) -> Array:
        stem, weight = name.removesuffix(".weight"), read(name)
        if stem + A not in found:
            return weight
        update = lora.alpha / lora.rank * (read(stem + B).astype(np.float64) @ read(stem + A).astype(np.float64))
        return (weight.astype(np.float64) + update).astype(weight.dtype)

    return plain, merged


def with_class_head(planned: Mapping[str, PlannedTensor], found: Found, read: Read) -> dict[str, PlannedTensor]:
    """The tensors of GPT2ForSequenceClassification: `score` in place of the head for tokens."""
    head = found[CLASSIFIER]
    rest = {name: tensor for name, tensor in planned.items() if name != LM_HEAD}
    return {**rest, SCORE: PlannedTensor(head.dtype, head.shape, lambda: read(CLASSIFIER))}


def class_config(task: TaskConfig, end_of_text: int | None) -> dict[str, object]:
    """What config.json of a classifier says beside a GPT-2's: the last token before the filling counts."""
    if task.kind != CLASSIFY:
        return {}
    return {
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {str(number): label for number, label in enumerate(task.labels)},
        "label2id": {label: number for number, label in enumerate(task.labels)},
        "pad_token_id": end_of_text,
    }


def adapters_of(task: TaskConfig) -> LoraConfig:
    """Raises NotExpressibleError for a model without adapters."""
    if task.lora is None:
        raise NotExpressibleError(
            "the checkpoint has no adapters: every weight was trained, or they are merged; export it with --format hf"
        )
    return task.lora


def adapter_tensors(found: Found, read: Read) -> dict[str, PlannedTensor]:
    """A and B of every adapted projection under peft's names; the head for classes, which learned too, beside them."""
    planned = {}
    for name, tensor in found.items():
        if name.endswith((A, B)):
            stem = gpt2_name(name[: -len(A)] + ".weight").removesuffix(".weight")
            target = f"{PEFT}{stem}.lora_{name[-1].upper()}.weight"
        elif name == CLASSIFIER:
            target = f"{PEFT}{SCORE}"
        else:
            continue
        planned[target] = PlannedTensor(tensor.dtype, tensor.shape, lambda name=name: read(name))  # type: ignore[misc]
    return planned


def adapter_config(task: TaskConfig, model: ModelConfig) -> dict[str, object]:
    """adapter_config.json. GPT-2's projections are Conv1D: fan_in_fan_out."""
    lora = adapters_of(task)
    names = [gpt2_name(f"blocks.0.{target}.weight").removesuffix(".weight") for target in lora.targets]
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if task.kind == CLASSIFY else "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [name.removeprefix("transformer.h.0.") for name in names],
        "modules_to_save": ["score"] if task.kind == CLASSIFY else None,
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }
