"""Which machines are past their deadline, by name, tag and two lists."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.fleet.orphans import GRACE_S, KnownRental, deadline, named, past_in_both, survey, unlisted
from orchestrator.core.ports import Instance

NOW = 1_800_000_000.0


def machine(instance_id: str, **fields: object) -> Instance:
    usual = {"rental_id": "r-" + instance_id, "price_per_hour_usd": 12.0, "launched_at": NOW - 7200}
    return Instance("lambda", instance_id, "8xH100", **{**usual, "tags": {"gptctl-rental": "r"}, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "tags", "ends_at"),
    [
        ("gptctl-a-until-1700", {"gptctl-ends-at": "1900"}, 1700.0),
        ("gptctl-a-until-1900", {"gptctl-ends-at": "1700"}, 1900.0),
        ("renamed by hand", {"gptctl-ends-at": "1700"}, 1700.0),
        ("gptctl-a-until-", {"gptctl-ends-at": "1700"}, 1700.0),
        ("gptctl-a-until-1700x", {"gptctl-ends-at": "soon"}, None),
        ("", {"gptctl-ends-at": "-5"}, None),
        ("", {"gptctl-ends-at": "1e9"}, None),
        ("", {}, None),
    ],
)
def test_the_name_goes_before_the_tag(name: str, tags: dict[str, str], ends_at: float | None) -> None:
    assert deadline(machine("a", name=name, tags=tags)) == ends_at


@pytest.mark.parametrize(("after_s", "past"), [(-10, False), (0, False), (GRACE_S, False), (GRACE_S + 1, True)])
def test_past_is_five_minutes_after_the_deadline(after_s: float, past: bool) -> None:
    (row,) = survey([machine("a", name=f"gptctl-a-until-{int(NOW - after_s)}")], {}, NOW)
    assert row.past is past


@pytest.mark.parametrize("status", ["terminating", "terminated", "preempted"])
def test_what_has_ended_is_past_nothing(status: str) -> None:
    (row,) = survey([machine("a", name="gptctl-a-until-1", status=status)], {}, NOW)
    assert (row.past, row.alive) == (False, False)


@pytest.mark.parametrize("status", ["booting", "active", "unhealthy", "a status of next year"])
def test_everything_else_may_cost(status: str) -> None:
    (row,) = survey([machine("a", name="gptctl-a-until-1", status=status)], {}, NOW)
    assert (row.past, row.alive) == (True, True)


def test_a_machine_without_our_tag_is_not_there_and_an_unknown_one_is_not_past() -> None:
    foreign = machine("f", rental_id=None, name="gptctl-f-until-1")
    unknown = machine("u", name=f"gptctl-u-until-{int(NOW + 60)}")
    rows = survey([foreign, unknown], {}, NOW)
    assert [(row.instance_id, row.known, row.past) for row in rows] == [("u", False, False)]


def test_age_and_the_most_it_can_have_cost() -> None:
    rows = survey(
        [machine("tagged"), machine("known", launched_at=None), machine("silent", launched_at=None)],
        {"r-known": KnownRental(NOW - 1800)},
        NOW,
    )
    assert {row.instance_id: (row.age_s, row.cost_usd) for row in rows} == {
        "tagged": (7200.0, 24.0),
        "known": (1800.0, 6.0),
        "silent": (None, None),
    }


def test_two_lists_have_to_agree() -> None:
    late, soon = "gptctl-a-until-1", f"gptctl-a-until-{int(NOW + 600)}"
    stays, moved, gone, fresh = "stays", "moved", "gone", "fresh"
    first = survey([machine(each, name=late) for each in (stays, moved, gone)], {}, NOW)
    second = survey([machine(stays, name=late), machine(moved, name=soon), machine(fresh, name=late)], {}, NOW)
    assert [row.instance_id for row in past_in_both(first, second)] == [stays]
    assert past_in_both([], second) == past_in_both(first, []) == []


def test_by_instance_or_rental_and_never_a_stranger() -> None:
    twice = [machine("a", rental_id="r"), machine("b", rental_id="r"), machine("c", status="terminated")]
    rows = survey(twice, {}, NOW)
    assert [row.instance_id for row in named(rows, "r")] == ["a", "b"]
    assert [row.instance_id for row in named(rows, "a")] == ["a"]
    assert [row.instance_id for row in named(rows, None)] == ["a", "b"]
    for wrong in ("c", "r-c", "x", ""):
        with pytest.raises(UserError):
            named(rows, wrong)


def test_those_past_come_first_then_the_oldest() -> None:
    machines = [
        machine("young", launched_at=NOW - 60),
        machine("past", launched_at=NOW - 60, name="gptctl-p-until-1"),
        machine("old"),
    ]
    assert [row.instance_id for row in survey(machines, {}, NOW)] == ["past", "old", "young"]


def test_a_machine_of_a_rental_that_is_over_is_named_first() -> None:
    known = {"r-left": KnownRental(NOW, over=True), "r-used": KnownRental(NOW)}
    machines = [machine("used"), machine("left"), machine("ended", rental_id="r-left", status="terminating")]
    rows = survey(machines, known, NOW)
    assert [(row.instance_id, row.over) for row in rows] == [("left", True), ("ended", False), ("used", False)]


def test_what_the_ledger_holds_and_no_list_shows_is_known() -> None:
    held = {"r-a": KnownRental(NOW, machines=(machine("a"),)), "r-b": KnownRental(NOW, machines=(machine("b"),))}
    assert [each.instance_id for each in unlisted(held, [machine("a")], "lambda")] == ["b"]
    assert unlisted(held, [], "ec2") == []


def test_a_name_alone_makes_a_machine_shown_but_not_past() -> None:
    old = NOW - 10_000
    by_name = machine("a", name=f"gptctl-r-until-{int(old)}", ends_at=old, tags={})
    assert [row.past for row in survey([by_name], {}, NOW)] == [False]
    assert [row.past for row in survey([by_name], {str(by_name.rental_id): KnownRental(old)}, NOW)] == [True]
