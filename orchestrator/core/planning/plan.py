"""The plan: recipe x machine x offer as steps, hours and dollars. What `plan` prints is what `run` executes.

A value: planner.py works it out, limits.py compares it with what was agreed to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One recipe on one machine. Tokens per second, hours and dollars are estimates; `rate_source` says whose."""

    recipe: str
    host: str | None
    machine: str
    ranks: int
    micro_batch: int
    accumulation: int
    global_batch: int
    steps: int
    tokens: int
    epochs: float | None
    """None when nobody knows how many tokens the data holds."""
    parameters: int
    tokens_per_second: float
    rate_source: str
    uncertainty: float
    """The rate is thought to lie within +- this fraction."""
    fits: bool
    why: str
    """Why it does not fit; empty when it does."""
    hours: Mapping[str, float]
    """boot, provision, data, train, fetch, total."""
    cost_usd: Mapping[str, float | None]
    """The same keys, and total_low and total_high; None where no price is known."""
    price_per_hour_usd: float | None
    price_source: str
    guard: Mapping[str, Any]
    """kind, armed, ends_at."""
    ending: str
    """What happens at the end with the laptop away, in one line."""
    paid: bool
    limits: Mapping[str, float | None]
    ceiling_usd: float | None
    """What the run may cost at most; None on a machine nobody bills."""
    warnings: tuple[str, ...] = ()
    data: Mapping[str, Any] | None = None
    """What goes to the machine: source, way (pulled, sent, in place), needed_bytes, pulled_bytes, dataset_bytes,
    verified_by; figures null where `unknown` says why. None where nobody looked."""

    @property
    def digest(self) -> str:
        """sha256 over all of it, hex."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with the digest."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings), "digest": self.digest}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Plan:
        """The plan to_json() came from. Keys of a later version are left out."""
        names = {field.name for field in dataclasses.fields(Plan)}
        known = {name: item for name, item in value.items() if name in names}
        return Plan(**{**known, "warnings": tuple(known.get("warnings", ()))})
