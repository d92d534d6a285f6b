"""The files in the guard's folder: its order, as `arm` wrote it, and its process's notes about itself.

Example: `read_notes(paths).get("accepted")`  # True once the API took the key
"""

from __future__ import annotations

import os
from typing import Dict, Optional, TypedDict, cast

from ..contract.names import FileName, GuardKind
from ..contract.requests import EndCall
from ..system import files, processes
from ..system.paths import Places


class Order(TypedDict, total=False):
    """order.json: no key. `end` and `look_url` belong to kind `key-on-box`, `rental` to kind `self`."""

    kind: str
    end: EndCall
    look_url: str
    rental: str
    instance_id: str
    lease_s: float
    boot_id: str


class Notes(TypedDict, total=False):
    """state.json: the process, whether its key was accepted, and when each run's training was first seen ended, on
    CLOCK_BOOTTIME."""

    guard: Optional[processes.Identity]
    ended: Dict[str, float]
    ending: bool
    accepted: bool
    problem: Optional[str]


def path_of(places: Places, name: str) -> str:
    """A file in the guard's folder."""
    return os.path.join(places.guard, name)


def read_order(places: Places) -> Order | None:
    """The order, valid or not; None where nothing was armed."""
    return cast("Optional[Order]", files.read_json(path_of(places, FileName.ORDER)))


def read_valid_order(places: Places) -> Order | None:
    """The order if it still holds: the key of an earlier boot is gone, and a timer needs none."""
    order = read_order(places)
    if order is None or order.get("kind") == GuardKind.SELF:
        return order
    return order if order.get("boot_id") == processes.boot_id() else None


def read_notes(places: Places) -> Notes:
    """The notes; empty where there are none."""
    return cast("Notes", files.read_json(path_of(places, FileName.STATE)) or {})
