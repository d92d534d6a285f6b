"""Every combination of what a provider may say in a round, and which of them may call a machine gone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.fleet import end_proof
from orchestrator.core.fleet.end_proof import EMPTY_LIST_S, ROUNDS, EndProof, Round
from orchestrator.core.ports import Life
from tests.support.clock.proof import REAL_S

WORDS = (*get_args(Life), None)


def proof_after(*rounds: Round, ordered: bool = True) -> EndProof:
    proof = EndProof()
    for each in rounds:
        proof = proof.after(each, ordered=ordered)
    return proof


def same(seen: Round, times: int = 50) -> list[Round]:
    return [Round(float(at), seen.word, seen.listed, seen.rows, seen.settled) for at in range(times)]


@pytest.mark.parametrize("word", ["alive", "terminating"])
@pytest.mark.parametrize("listed", [None, False])
def test_the_word_on_the_id_outweighs_every_list(word: Life, listed: bool | None) -> None:
    assert not proof_after(*same(Round(0, word, listed, settled=True), 500)).complete


@pytest.mark.parametrize("word", WORDS)
def test_a_machine_that_is_listed_is_never_gone(word: Life | None) -> None:
    assert not proof_after(*same(Round(0, word, listed=True, rows=1, settled=True), 500)).complete


def test_the_word_gone_needs_no_list_but_two_rounds() -> None:
    assert not proof_after(Round(0, "gone")).complete
    assert proof_after(Round(0, "gone"), Round(2, "gone"), ordered=False).complete


def test_an_end_has_to_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)
    rounds = [Round(float(at), "gone") for at in range(0, 20, 2)]
    assert [proof_after(*rounds[:count]).complete for count in (1, 2, 4, 5)] == [False, False, False, True]
    broken = [*rounds[:4], Round(8.0, "alive"), Round(10.0, "gone"), Round(16.0, "gone")]
    assert not proof_after(*broken).complete and proof_after(*broken, Round(18.0, "gone")).complete


def test_a_relapse_between_two_rounds_begins_the_count_anew() -> None:
    assert not proof_after(Round(0, "gone"), Round(2, "alive"), Round(4, "gone")).complete


def test_an_api_that_is_silent_every_other_time_neither_proves_nor_disproves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)
    silent, gone = Round(0, None, None), Round(0, "gone")
    rounds = [replace((gone, silent)[at % 2], at=2.0 * at) for at in range(5)]
    assert not proof_after(*rounds[:4]).complete and proof_after(*rounds).complete
    assert not proof_after(*same(silent, 500)).complete
    alive = EndProof().after(Round(0, "alive"), ordered=True).after(Round(2, None, None), ordered=False)
    assert alive.needs_order, "the order is sent again until something shows that it ends"


def test_without_a_taken_order_no_list_proves_anything() -> None:
    assert not proof_after(*same(Round(0, None, listed=False, rows=3), 500), ordered=False).complete
    assert not proof_after(*same(Round(0, "unknown", listed=False, rows=3), 500), ordered=False).complete


def test_an_id_that_the_provider_must_know_and_denies_is_gone() -> None:
    assert proof_after(*same(Round(0, "unknown", listed=False, settled=True), ROUNDS), ordered=False).complete


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("settled", [True, False])
def test_an_unknown_id_without_any_list_is_gone_once_it_was_ordered_and_must_be_known(
    ordered: bool, settled: bool
) -> None:
    proof = EndProof()
    for at in (0.0, 9.0, 18.0):
        proof = proof.after(Round(at, "unknown", listed=None, settled=settled), ordered=ordered)
    assert proof.complete is (ordered and settled)


def test_an_empty_list_counts_only_a_minute_after_one_with_rows() -> None:
    with_rows = Round(0, None, listed=True, rows=1)
    soon = [Round(at, None, listed=False, rows=0) for at in (2.0, 30.0, EMPTY_LIST_S - 1)]
    late = [Round(at, None, listed=False, rows=0) for at in (EMPTY_LIST_S + 1, EMPTY_LIST_S + 3)]
    assert not proof_after(with_rows, *soon).complete
    assert proof_after(with_rows, *soon, *late).complete


def test_lists_that_were_always_empty_prove_nothing() -> None:
    assert not proof_after(*same(Round(0, None, listed=False, rows=0), 500)).complete


@given(st.lists(st.sampled_from(list(product(WORDS, [None, False, True], [0, 2], [False, True]))), max_size=12))
def test_a_machine_is_never_called_gone_in_a_round_that_shows_it_alive(
    rounds: list[tuple[Life | None, bool | None, int, bool]],
) -> None:
    proof = EndProof()
    for at, (word, listed, rows, settled) in enumerate(rounds):
        proof = proof.after(Round(float(at), word, listed, rows, settled), ordered=True)
        if listed or word in ("alive", "terminating"):
            assert not proof.complete


@pytest.mark.parametrize(
    ("seen", "again"),
    [
        (Round(0, "terminating", listed=True, rows=1), False),
        (Round(0, "gone"), False),
        (Round(0, "alive", listed=True, rows=1), True),
        (Round(0, None, listed=True, rows=1), True),
        (Round(0, "unknown", listed=False), False),
    ],
)
def test_the_order_is_sent_again_only_to_a_machine_that_lives(seen: Round, again: bool) -> None:
    assert EndProof().needs_order
    assert proof_after(seen).needs_order is again
    assert proof_after(seen, ordered=False).needs_order
