"""The order of the tests among several workers: what takes long begins early, and what computes runs beside what waits.

Stories compute (each starts the real trainer); most others wait for a process or a deadline. Both kinds are spread
over the whole time by the seconds in tests/durations.json, so that neither all workers train at once nor one of them
trains on when the others have ended. What shares a fixture of its module stays with one worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.files.repository import REPOSITORY

COMPUTING = ("tests/stories/", "tests/trainer/")
UNTIL = 0.85
"""The last computing test begins when this part of the others' seconds has begun: no worker trains alone at the end."""
DURATIONS = REPOSITORY / "tests/durations.json"
"""What the workers of `make test` are busy with, all in all (`gate_s`), and the seconds of every test that takes at
least one (`tests`), written by `make durations`."""
USUAL_S = 0.2
"""Of a test that is not in there."""


def spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """Both kinds over the same time, in each the longest first; what stays together counts and stands as one."""
    durations: dict[str, float] = json.loads(DURATIONS.read_text())["tests"] if DURATIONS.exists() else {}
    units: dict[str, list[pytest.Item]] = {}
    for item in items:
        units.setdefault(unit_of(item.nodeid), []).append(item)
    seconds = {name: sum(durations.get(item.nodeid, USUAL_S) for item in unit) for name, unit in units.items()}
    computing = [name for name, unit in units.items() if unit[0].nodeid.startswith(COMPUTING)]
    waiting = [name for name in units if name not in set(computing)]
    places = [*_placed(computing, seconds, UNTIL), *_placed(waiting, seconds, 1.0)]
    return [item for _, name in sorted(places, key=lambda place: place[0]) for item in units[name]]


def _placed(names: list[str], seconds: dict[str, float], until: float) -> Iterable[tuple[float, str]]:
    """(part of the whole time at which it begins, name), the longest first."""
    whole, done = sum(seconds[name] for name in names) or 1.0, 0.0
    for name in sorted(names, key=lambda name: -seconds[name]):
        yield until * done / whole, name
        done += seconds[name]


def unit_of(nodeid: str) -> str:
    """What goes to one worker as a whole: all that uses the S3 server (seven seconds of processor to start), all
    that transformers checks (five to import), the file where its tests share a fixture, else the test."""
    file = nodeid.partition("::")[0]
    text = _text(file)
    for costly in ("s3_server", "from transformers import"):
        if costly in text:
            return costly
    return file if 'scope="module"' in text else nodeid


@cache
def _text(file: str) -> str:
    return (REPOSITORY / file).read_text(encoding="utf-8")


class Scheduler(LoadScopeScheduling):
    """pytest-xdist's. Its own groups are marks, which 3.8 loses with pytest 9.2: every worker sets every module up."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
