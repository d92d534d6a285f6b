"""The small tables inside config.json, and how parsed JSON becomes the frozen dataclasses of trainer/contract.py.

Standard library only, like contract.py.

Example::

    build(RateFactors, {"head": 0.5}, "train.rate_factors.")      # RateFactors(head=0.5)
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass


class ContractError(ValueError):
    """A config.json that the trainer cannot use. The message names the key and, for a typo, the nearest known one."""


@dataclass(frozen=True)
class RateFactors:
    """By what the learning rate of each kind of tensor is multiplied."""

    token_embedding: float = 1.0
    position_embedding: float = 1.0
    head: float = 1.0
    """Of an untied head; a tied one is the token embedding."""
    qkv: float = 1.0
    attention_out: float = 1.0
    mlp_up: float = 1.0
    mlp_down: float = 1.0
    vectors: float = 1.0
    """Biases, norms and scalars."""


@dataclass(frozen=True)
class Stage:
    """A first part of the training with another batch or shorter sequences; see TrainConfig.stages."""

    until: float = 0.0
    """Its end, as a part of all steps."""
    global_batch: int = 1
    """Sequences per step."""
    context_length: int = 1
    """Tokens of a sequence: a divisor of the model's context_length."""


def build(kind: typing.Any, value: object, where: str) -> object:
    """The frozen dataclass `kind` out of parsed JSON. Raises ContractError for an unknown key or a wrong type."""
    if not isinstance(value, dict):
        raise ContractError("config.json: %s must be a table, got %r" % (where or "the top level", value))
    hints = typing.get_type_hints(kind)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(key, list(hints), n=1)
            meant = " (did you mean %s?)" % near[0] if near else ""
            raise ContractError("config.json: unknown key %s%s%s" % (where, key, meant))
    return kind(**{key: _convert(hints[key], item, where + key) for key, item in value.items()})


def _convert(hint: typing.Any, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where + ".")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        return None if value is None else _convert(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ContractError("config.json: %s must be a list, got %r" % (where, value))
        return tuple(_convert(arguments[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin or hint) or (hint is int and isinstance(value, bool)):
        raise ContractError("config.json: %s must be %s, got %r" % (where, hint.__name__, value))
    return value
