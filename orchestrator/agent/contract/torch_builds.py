"""Which torch a new environment gets: one index and one version that this index has, by the driver and the cards.

A build that is newer than the driver sees no card, and pip takes the newest of all the indexes it knows: so gptctl
names one index and pins the version. Sources: PyTorch's CUDA support matrix (RELEASE.md, and its issues 178665 and
190385 for what ended when), NVIDIA's minor-version compatibility for the drivers.

Example::

    choose("570.86.15", [(8, 0)])      # Build(name='cu126', version='2.13.0', ...)
"""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple

TORCH = "2.13.0"
"""The tested version."""
Capability = Tuple[int, int]


class Build(NamedTuple):
    """One build of torch. `least` and `greatest` are compute capabilities, the driver is its first number."""

    name: str
    """Of its index: cu130."""
    version: str
    least_driver: int
    least: Capability
    greatest: Capability
    download_bytes: int
    """With the CUDA libraries that it needs."""

    def serves(self, card: Capability) -> bool:
        """Whether the build has code for that card."""
        return self.least <= card <= self.greatest


BUILDS = (
    Build("cu130", TORCH, 580, (7, 5), (12, 1), 2_000_000_000),
    # CUDA 12.6: older drivers, and Volta and Pascal on any driver. It ends with torch 2.14.
    Build("cu126", TORCH, 525, (5, 0), (9, 0), 2_900_000_000),
    # CUDA 12.8 ended with torch 2.11. Only Blackwell needs it, whose first driver is 570.
    Build("cu128", "2.11.0", 570, (7, 5), (12, 0), 3_200_000_000),
)
"""The preferred first."""
CPU = Build("cpu", TORCH, 0, (0, 0), (0, 0), 200_000_000)


def choose(driver: str | None, cards: Sequence[Capability]) -> Build:
    """The first build that the driver can run and that knows every card. Raises ValueError: why there is none.

    cards: compute capabilities; none where nvidia-smi does not tell them, then any build counts as knowing them.
    """
    number = _major(driver)
    if number == 0:
        raise ValueError("nvidia-smi names no driver: install one, 580 or newer")
    oldest = min(build.least_driver for build in BUILDS)
    if number < oldest:
        raise ValueError(
            "driver %s is older than any build of torch: update it to 580, at least to %d" % (driver, oldest)
        )
    able = [build for build in BUILDS if all(build.serves(card) for card in cards)]
    if not able:
        raise ValueError(_unserved(cards))
    for build in able:
        if number >= build.least_driver:
            return build
    newest = max(cards)
    least = min(build.least_driver for build in able)
    raise ValueError(
        "driver %s is too old for a card of compute capability %d.%d: update it to 580, at least to %d"
        % (driver, newest[0], newest[1], least)
    )


def newest(cards: Sequence[Capability]) -> Build:
    """The preferred build that knows every card, for machines whose driver cannot be asked."""
    return next((build for build in BUILDS if all(build.serves(card) for card in cards)), BUILDS[0])


def possible(cards: Sequence[Capability]) -> list[Build]:
    """The builds that one driver or another is given for these cards, the preferred first; none where none serves."""
    able = [build for build in BUILDS if all(build.serves(card) for card in cards)]
    older = [build.least_driver for build in able]
    # One that needs no older driver than a preferred one is never chosen.
    return [build for number, build in enumerate(able) if build.least_driver < min(older[:number], default=10**6)]


def _unserved(cards: Sequence[Capability]) -> str:
    alone = [card for card in cards if not any(build.serves(card) for build in BUILDS)]
    words = " and ".join("%d.%d" % card for card in sorted(set(alone or cards)))
    if alone:
        return "no build of torch >= 2.9 knows a card of compute capability %s: leave it out, or take another" % words
    return "no one build serves cards of compute capability %s: train on one kind of card" % words


def _major(driver: str | None) -> int:
    first = (driver or "").partition(".")[0]
    return int(first) if first.isdigit() else 0
