"""Ids of runs and rentals: readable, and random enough that two laptops or a wiped ledger never collide.

They are safe as folder names, SSH arguments and instance names on every cloud: `[a-z0-9-]{1,40}`.

    new_run_id("chinchilla_163m", now)  ->  "chinchilla-163m-1120-k3f9qa"
"""

from __future__ import annotations

import os
import re
import time

from orchestrator.core.safe_names import ID

PATTERN = re.compile(ID)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base32: no i, l, o, u, so an id can be read out on the telephone."""


def new_run_id(recipe_name: str, now: float) -> str:
    """`<recipe, 20 characters at most>-<MMDD, UTC>-<6 random base32>`."""
    return _new_id(recipe_name, "run", now)


def new_rental_id(machine: str, now: float) -> str:
    """`<machine type>-<MMDD, UTC>-<6 random base32>`, such as `8xa100-40gb-1120-7hk2pz`."""
    return _new_id(machine, "machine", now)


def is_id(text: str) -> bool:
    """Whether text could be an id of ours: checked wherever one comes from outside."""
    return PATTERN.fullmatch(text) is not None


def _new_id(name: str, fallback: str, now: float) -> str:
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:20].strip("-") or fallback
    random = "".join(_ALPHABET[byte % 32] for byte in os.urandom(6))  # 256 is a multiple of 32: no letter is likelier
    return f"{word}-{time.strftime('%m%d', time.gmtime(now))}-{random}"
