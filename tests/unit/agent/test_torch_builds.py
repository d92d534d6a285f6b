"""Which torch a new environment gets, for every driver and card, against the recorded index pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent.contract.torch_builds import BUILDS, CPU, TORCH, Build, choose
from orchestrator.agent.setup.versions import numbers, satisfies
from tests.support.files.torch_index import CARDS, LEAST_DRIVER, PAGES, PYPI

CAPABILITIES = [(5, 2), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
AMPERE, BLACKWELL = (8, 0), (12, 0)


def chosen(driver: str | None, *cards: tuple[int, int]) -> Build | None:
    try:
        return choose(driver, list(cards))
    except ValueError:
        return None


@pytest.mark.parametrize("build", [*BUILDS, CPU], ids=lambda build: build.name)
def test_each_build_is_on_its_index(build: Build) -> None:
    assert build.version in PAGES[build.name]
    assert satisfies(build.version, ">=2.9")


@given(st.integers(300, 700), st.lists(st.sampled_from(CAPABILITIES), max_size=8))
def test_whatever_is_chosen_runs_with_that_driver_on_all_those_cards(driver: int, cards: list[tuple[int, int]]) -> None:
    build = chosen(f"{driver}.10", *cards)
    if build is None:
        return
    assert driver >= LEAST_DRIVER[build.name]
    assert all(CARDS[build.name][0] <= card <= CARDS[build.name][1] for card in cards)


@pytest.mark.parametrize(
    ("driver", "card", "index", "version"),
    [
        ("535.183.01", AMPERE, "cu126", TORCH),
        ("535.183.01", (7, 0), "cu126", TORCH),
        ("550.54.15", (9, 0), "cu126", TORCH),
        ("570.86.15", AMPERE, "cu126", TORCH),  # the same torch as on newer drivers: runs compare
        ("570.86.15", BLACKWELL, "cu128", "2.11.0"),  # cu128 ended with 2.11
        ("575.57.08", (10, 0), "cu128", "2.11.0"),
        ("580.95.05", AMPERE, "cu130", TORCH),
        ("580.95.05", BLACKWELL, "cu130", TORCH),
        ("595.45.04", (9, 0), "cu130", TORCH),
        ("580.95.05", (7, 0), "cu126", TORCH),  # CUDA 13 knows no Volta
        ("580.95.05", (6, 1), "cu126", TORCH),
    ],
)
def test_the_table(driver: str, card: tuple[int, int], index: str, version: str) -> None:
    build = chosen(driver, card)
    assert build is not None
    assert (build.name, build.version) == (index, version)


@pytest.mark.parametrize(
    ("driver", "cards", "words"),
    [
        ("470.256.02", [AMPERE], "driver 470.256.02 is older than any build of torch"),
        ("550.54.15", [BLACKWELL], "driver 550.54.15 is too old for a card of compute capability 12.0"),
        ("580.95.05", [(3, 7)], "no build of torch >= 2.9 knows a card of compute capability 3.7"),
        ("580.95.05", [(6, 1), BLACKWELL], "no one build serves cards of compute capability 6.1 and 12.0"),
        (None, [AMPERE], "nvidia-smi names no driver"),
    ],
)
def test_what_no_build_serves_is_said_before_gigabytes_move(
    driver: str | None, cards: list[tuple[int, int]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        choose(driver, cards)


def test_the_newest_of_two_indexes_was_what_no_card_could_use() -> None:
    """What `torch>=2.9` from the default index beside cu128 gave on driver 575: CUDA 13, which needs 580."""
    newest = max([*PAGES["cu128"], *PYPI], key=numbers)
    assert LEAST_DRIVER[PYPI[newest]] > 575


def test_an_unknown_capability_counts_as_one_that_every_build_serves() -> None:
    assert chosen("570.86.15") == chosen("570.86.15", AMPERE)
