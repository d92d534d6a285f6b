"""The matrix lie x stage: what a list may hide or add, and where in a run it does.

Example: `play(place, "empty", "release")`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.conftest import Rehearsal
from tests.stories.conftest import end, wait_until

LIE_S = 8


@dataclass(frozen=True)
class Lie:
    """A lie as a fault script: told from now on, or from the launch on; `before` is armed first."""

    now: str
    from_launch: str
    before: str = ""


LIES = {
    "empty": Lie(f"list-empty@{LIE_S}", f"list-empty@launch+{LIE_S}"),
    "tagless": Lie(f"list-untagged@{LIE_S}", f"list-untagged@launch+{LIE_S}"),
    "nameless": Lie(f"list-nameless@{LIE_S}", f"list-nameless@launch+{LIE_S}"),
    "paged": Lie("list-paged@600", "list-paged@600", before="decoys@1"),
    "odd row": Lie("list-odd-row@type", "list-odd-row@type"),
    "odd row of ours": Lie("list-odd-row@ours*4", "list-odd-row@ours*4"),
    "lagging": Lie(f"list-lag@{LIE_S}*9", f"list-lag@{LIE_S}*9"),
}


def play(place: Rehearsal, lie: str, stage: str) -> bool:
    """Tells the lie at the stage, and holds the pass line."""
    if LIES[lie].before:
        place.cloud.inject(LIES[lie].before)
    STAGES[stage](place, LIES[lie])
    return True


def _acquire(place: Rehearsal, lie: Lie) -> None:
    place.write(steps=20, every=10)
    place.run(inject=lie.from_launch)
    place.settled()


def _resume(place: Rehearsal, lie: Lie) -> None:
    place.write(steps=400)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    end(process)
    place.cloud.inject(lie.now)
    place.gptctl("resume", place.run_id())
    place.settled()
    assert place.newest()["outcome"] in (None, "finished"), place.said


def _follow(place: Rehearsal, lie: Lie) -> None:
    place.write(steps=400)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    place.cloud.inject(f"ssh-drop@0,{lie.now}")
    place.wait(process)
    place.settled()
    assert place.newest()["outcome"] in (None, "finished"), place.said


def _release(place: Rehearsal, lie: Lie) -> None:
    place.killed_at("stage_finished:acquire")
    place.cloud.inject(lie.now)
    place.gptctl("release", place.run_id(), "--force", "--yes")
    place.settled()


def _orphans(place: Rehearsal, lie: Lie) -> None:
    place.killed_at("stage_finished:acquire")
    place.cloud.inject(lie.now)
    place.gptctl("orphans")
    place.settled(listed=True)


STAGES: dict[str, Callable[[Rehearsal, Lie], None]] = {
    "acquire": _acquire,
    "resume": _resume,
    "follow": _follow,
    "release": _release,
    "orphans": _orphans,
}


def silence(place: Rehearsal, fault: str) -> None:
    """Leaves a run that trains, and its machine without SSH: `frozen` or `ssh-gone`."""
    place.write(steps=4000)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    end(process)
    place.cloud.inject(f"{fault}@-1")
    wait_until(lambda: fault in place.cloud.fired(), 30)
