"""The order of the tests among several workers: what takes long begins early, and nobody is left alone with it.

Stories take half a minute each and half the suite's time; they are spread over the first part of it, so that neither
all workers train at once nor one of them trains on when the others have ended. What shares a fixture of its module
stays with one worker (`--dist loadgroup`).
"""

from __future__ import annotations

from typing import Any

import pytest

STORIES = "tests/stories/"
UNTIL = 0.8
"""The last story begins when this part of the other tests has begun."""


def spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """Stories evenly among the others; the order within both is kept."""
    stories = [item for item in items if item.nodeid.startswith(STORIES)]
    others = [item for item in items if not item.nodeid.startswith(STORIES)]
    each = UNTIL * len(others) / len(stories) if stories else 0.0
    places = [(index * each, 0, index, item) for index, item in enumerate(stories)]
    places += [(float(index), 1, index, item) for index, item in enumerate(others)]
    return [item for *_, item in sorted(places, key=lambda place: place[:3])]


def keep_together(items: list[pytest.Item]) -> None:
    """Marks those that would otherwise set a fixture of their module up once for each worker."""
    for item in items:
        known: Any = getattr(item, "_fixtureinfo", None)  # pytest has no public way to a fixture's scope
        found = known.name2fixturedefs.values() if known else ()
        if any(fixtures and fixtures[-1].scope == "module" for fixtures in found):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
