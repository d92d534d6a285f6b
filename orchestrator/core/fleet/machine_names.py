"""The marks by which every provider knows our machines: tags that stay, and a name that carries the deadline.

Example::

    machine_name("8xa100-1126-k3f9qa", 1_795_000_000.5)           # "gptctl-8xa100-1126-k3f9qa-until-1795000000"
    rental_of("gptctl-8xa100-1126-k3f9qa-until-1795000000", {})   # "8xa100-1126-k3f9qa"
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.core.safe_names import ID

RENTAL_TAG, INTENT_TAG, ENDS_TAG, RUN_TAG = "gptctl-rental", "gptctl-intent", "gptctl-ends-at", "gptctl-run"
NODE_TAG = "gptctl-node"
"""Which one of its rental, from 0, where several are rented as one."""
NAME = re.compile(rf"gptctl-(?P<rental>{ID})-until-(?P<epoch>[0-9]{{1,12}})")
NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


def machine_name(rental_id: str, ends_at: float | None) -> str:
    """At most 64 characters: the rental, and when a watcher may end the machine (UTC epoch seconds, whole)."""
    return f"gptctl-{rental_id}" + ("" if ends_at is None else f"-until-{int(ends_at)}")


def rental_of(name: str, tags: Mapping[str, str]) -> str | None:
    """The rental that a machine belongs to, by its tag, else by its name; None: it is not ours."""
    named = NAME.fullmatch(name)
    return tags.get(RENTAL_TAG) or (named["rental"] if named else None)


def is_anothers(name: str, tags: Mapping[str, str], rental_id: str | None) -> bool:
    """Whether a machine's marks are of another rental, or of none of ours. One that shows no mark at all may be the
    rental's: lists may lack them."""
    owner = rental_of(name, tags)
    if owner is None:
        return bool(name or tags) or rental_id is None
    return rental_id not in (None, owner)


def ends_at(name: str, tags: Mapping[str, str]) -> float | None:
    """When a watcher may end it, UTC epoch seconds: by its name, which can be moved, else by its tag."""
    named = NAME.fullmatch(name)
    return float(named["epoch"]) if named else number_in(tags.get(ENDS_TAG))


def number_in(text: str | None) -> float | None:
    """The number in a tag; None if there is none."""
    return float(text) if text is not None and NUMBER.fullmatch(text) else None
