"""No table breaks an id, a host or a command, whatever the width of the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from orchestrator.cli.machines import cost, hosts, offers, orphans, reconcile
from orchestrator.cli.plans import plan, recipes
from orchestrator.cli.runs import status_rows
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column, as_blocks, as_cards, fit, footnotes, one_note, speaking

TABLES = {
    "status": status_rows.COLUMNS, "plan": plan.COLUMNS, "offers": offers.COLUMNS, "orphans": orphans.COLUMNS,
    "hosts": hosts.COLUMNS, "cost": cost.COLUMNS, "reconcile": reconcile.COLUMNS,
}  # fmt: skip
ID = "chinchilla_163m_baseline-1130-gqkyw0"
STATUS_ROW = (
    f"{ID} (weight tying)", "chinchilla_163m_baseline", "lambda-8xa100", "3h 12m", "follow", "12,345/33,165", "3.2345",
    "3.3456", "1.02M", "1h 02m", "$12.34 to $12.90", "$15.92", "seen 4s ago via ssh",
)  # fmt: skip


def printed(columns: Any, rows: Any, width: int, monkeypatch: pytest.MonkeyPatch, **how: bool) -> list[str]:
    out = io.StringIO()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout", out)
    screen.show_table(columns, rows, **how)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
@pytest.mark.parametrize("cards", [True, False])
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_whole_and_no_line_is_too_long(
    name: str, cards: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = TABLES[name]
    cells = (
        STATUS_ROW
        if name == "status"
        else tuple(f"{column.name.lower().replace(' ', '-')}-{'x' * 9}" for column in columns)
    )
    lines = printed(columns, [cells, cells], width, monkeypatch, cards=cards)
    stays = [cell for column, cell in zip(columns, cells, strict=True) if column.leaves == 0]
    text = "\n".join(lines)
    assert all(text.count(cell) == 2 for cell in stays)
    assert all(
        cell_len(line) <= max(width, max(map(len, cells)) + max(len(column.name) for column in columns) + 4)
        for line in lines
    )


@pytest.mark.parametrize("width", [60, 80])
def test_a_run_is_a_card_of_two_or_three_lines_in_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(status_rows.COLUMNS, [STATUS_ROW], width, monkeypatch, cards=True)
    assert lines[0].startswith(f"{ID} (weight tying)")
    assert all(any(cell in line for line in lines) for cell in STATUS_ROW), "nothing leaves a card"
    assert max(map(len, lines)) <= width and len(lines) <= 5


def test_columns_leave_in_their_order() -> None:
    columns = (Column("RUN"), Column("A", leaves=1), Column("B", leaves=3), Column("C", leaves=2))
    row = ("run-1", "aaaa", "bbbb", "cccc")
    left = [[column.name for column in fit(columns, [row], width).left] for width in (23, 22, 17, 11, 5)]
    assert left == [[], ["B"], ["B"], ["B", "C"], ["A", "B", "C"]]


@given(
    st.lists(st.tuples(st.text("ab -", min_size=1, max_size=30), st.integers(0, 5)), min_size=1, max_size=8),
    st.integers(20, 200),
)
def test_what_fits_is_never_wider_than_the_terminal(cells: list[tuple[str, int]], width: int) -> None:
    columns = [Column(f"C{at}", leaves=leaves) for at, (_, leaves) in enumerate(cells)]
    row = [text for text, _ in cells]
    fitted = fit(columns, [row], width)
    assert sorted([*fitted.rows[0], *fitted.left_cells[0]]) == sorted(row)
    wide = (
        sum(max(len(column.name), len(cell)) + 2 for column, cell in zip(fitted.columns, fitted.rows[0], strict=True))
        - 2
    )
    assert fitted.fits is (wide <= width)
    assert all(column.leaves for column in fitted.left)


def test_prose_breaks_before_a_figure_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "the reference baseline: constant rate, dropout, decay on all tensors, fp16, no clipping"
    row = ("interventions/low_rank", "163M", "3.26B", said)
    lines = {width: printed(recipes.COLUMNS, [row], width, monkeypatch) for width in (60, 80, 160)}
    assert all("163M" in lines[width][1] and "3.26B" in lines[width][1] for width in lines)
    assert " ".join(" ".join(line[40:].strip() for line in lines[80][1:]).split()) == said
    assert all(len(line) <= width for width in lines for line in lines[width])


def test_blocks_break_at_spaces_alone() -> None:
    columns = (Column("ID"), Column("NOTE"))
    lines = as_blocks(columns, [("i-0123456789", "past its deadline since a very long time")], 24)
    assert lines[0] == "i-0123456789" and len(lines) > 2
    assert " ".join(line.strip().removeprefix("NOTE").strip() for line in lines[1:]) == (
        "past its deadline since a very long time"
    )


def test_unknown_values_are_left_out_of_cards() -> None:
    columns = (Column("RUN"), Column("ETA", leaves=1, label="ETA {}"), Column("VAL", leaves=2))
    assert as_cards(columns, [("r", "-", "3.1")], 80) == ["r", "  val 3.1"]


def test_a_card_does_not_repeat_the_recipe_that_begins_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    named = printed(status_rows.COLUMNS, [STATUS_ROW], 80, monkeypatch, cards=True)
    renamed = (STATUS_ROW[0], "low_rank", *STATUS_ROW[2:])
    assert "\n".join(named).count("chinchilla_163m_baseline") == 1
    assert "low_rank" in "\n".join(printed(status_rows.COLUMNS, [renamed], 80, monkeypatch, cards=True))


@given(st.integers(1, 6).flatmap(lambda wide: st.lists(st.lists(st.sampled_from(["", "-", "a"]), min_size=wide,
       max_size=wide), min_size=1, max_size=4)))  # fmt: skip
def test_a_column_that_says_nothing_leaves_unless_it_is_the_only_one(rows: list[list[str]]) -> None:
    columns = [Column(f"C{at}") for at in range(len(rows[0]))]
    said = [column for at, column in enumerate(columns) if any(row[at] == "a" for row in rows)]
    left, cells = speaking(columns, rows)
    assert list(left) == (said or columns[:1]) and all(len(row) == len(left) for row in cells)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [60, 160])
def test_every_table_leaves_out_what_no_row_says(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = TABLES[name]
    row = ["x", *("-" if at % 2 else "y" for at in range(1, len(columns)))]
    lines = printed(columns, [row, row], width, monkeypatch)
    assert "-" not in "".join(lines).split() and lines[0].split()[0] in (columns[0].name, "x")


def test_a_remark_of_many_rows_is_one_footnote() -> None:
    assert footnotes(["guess", "", "measured", "guess"]) == {"guess": 1, "measured": 2}


def test_remarks_that_differ_in_numbers_are_one_footnote_with_both_ends() -> None:
    notes = [f"computed: MFU {mfu} of {peak} TFLOP/s" for mfu, peak in
             (("5%", 35.5), ("19%", 8.1), ("below 1%", 494.5))]  # fmt: skip
    others = ["measured by us on 2026-11-28", "measured by us on 2026-11-29", "with 8xA100-40GB", "with 8xA100-80GB"]
    numbered = footnotes([*notes, *others])
    assert [numbered[note] for note in notes] == [1, 1, 1]
    assert [numbered[note] for note in others] == [2, 3, 4, 5]
    assert one_note(notes) == "computed: MFU below 1% to 19% of 8.1 to 494.5 TFLOP/s"
    assert one_note(notes[:1]) == notes[0]


def test_a_command_stays_on_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = f"gptctl orphans --reap {ID} --inventory /a/long/path/inventory.toml"
    screen.talk("this machine is alive although nothing needs it. To end it:", commands=[command])
    lines = capsys.readouterr().err.splitlines()
    assert f"  {command}" in lines and max(map(len, lines[:-1])) <= 40


def test_nothing_is_printed_of_a_table_without_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line for columns in TABLES.values() for line in printed(columns, [], 80, monkeypatch)] == []


@pytest.mark.parametrize("width", [40, 80])
def test_a_fact_of_several_lines_stays_below_its_name(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    screen.talk_fact("data", "gptctl prepares tokens from python-stdlib on this computer; they are read in place")
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith("data    gptctl") and all(line.startswith(" " * 8) for line in more)
    assert max(map(len, (first, *more))) <= width
