"""What the JSON beside a foreign model's weights says, as values of the type they must have.

Such a file may hold anything: a value of another type is refused by its name, never guessed. Example::

    model = described_model(found.place, found.described["meta.json"].get("model"), tensors=148)
    rate_of(found.place, {"drop_rate": 0.1}, "drop_rate")            # 0.1; 0.0 where it is not said
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract import ModelConfig
from trainer.weights.weight_files import WeightsError

MOST_SHOWN = 60


def described_model(place: Path, described: object, tensors: int) -> ModelConfig:
    """The shape in meta.json or gptctl.json. `tensors`: how many there are, more than layers or experts. Raises
    WeightsError."""
    if not isinstance(described, Mapping):
        raise WeightsError(f"{place}: no meta.json or gptctl.json describes the model")
    fields = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    for name, value in sorted(described.items()):
        if name not in fields:
            raise WeightsError(f"{place}: its model has the option {name}, which this gptctl does not know")
        if not _is_like(value, fields[name]):
            raise WeightsError(f"{place}: its model's {name} is {shown(value)}, which no model has")
    model = ModelConfig(**described)
    if max(model.n_layer, model.experts) > tensors:
        raise WeightsError(f"{place}: its description says {model.n_layer} layers, and there are {tensors} tensors")
    return model


def _is_like(value: object, default: object) -> bool:
    """Whether an option can have this value: of the type of its default, and no number below zero."""
    if default is None:
        return value is None or isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    return type(value) is type(default) and (not isinstance(value, int) or value >= 0)


def table_of(place: Path, said: object, name: str) -> Mapping[str, Any]:
    """A table in a description; empty where it is not said."""
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise WeightsError(f"{place}: {name} is {shown(said)}, not a table")
    return said


def rate_of(place: Path, config: Mapping[str, Any], key: str) -> float:
    """A dropout rate; 0 where it is not said."""
    value = config.get(key)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise WeightsError(f"{place}: {key} = {shown(value)} cannot be expressed: a rate is from 0 to below 1")
    return float(value)


def flag_of(place: Path, config: Mapping[str, Any], key: str) -> bool | None:
    """True, false, or None where it is not said."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise WeightsError(f"{place}: {key} = {shown(value)} is neither true nor false")
    return value


def shown(value: object) -> str:
    """A value in a message: however long it is, the message is not."""
    text = ascii(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a number of many digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
