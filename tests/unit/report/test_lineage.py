"""Where a model comes from: what its record, its report, its cost and a comparison say of ancestors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.facts.origin import IMPORTED, RESUMED, STARTED, Lineage, Origin, SourceTokens, added
from orchestrator.core.states import Outcome
from orchestrator.core.typed_json import decode
from orchestrator.ledger import RunRecord
from orchestrator.report import lineage
from orchestrator.report.comparison.comparison import Compared, by_recipe, compare
from orchestrator.report.comparison.result import Metric
from orchestrator.report.data_source import data_differences, data_read
from tests.unit.report.test_report import a_run

A, B = "hf://me/a", "hf://me/b"


def run(run_id: str, source: str = A) -> RunRecord:
    """A finished run of 100 steps and 10,000 tokens."""
    made = a_run()
    assert made.plan is not None
    plan = dataclasses.replace(made.plan, steps=100, tokens=10_000)
    data = {"source": source, "start_token": 0, "tokens": None, "order": "sequential"}
    recipe = {**made.recipe_data, "data": data}
    return dataclasses.replace(made, id=run_id, plan=plan, recipe_data=recipe, step=100)


def from_(made: RunRecord, origin: Origin, from_step: int = 0) -> RunRecord:
    assert made.plan is not None
    plan = dataclasses.replace(made.plan, from_step=from_step)
    return dataclasses.replace(made, plan=plan, facts=dataclasses.replace(made.facts, origin=origin))


FIRST = run("first-1120-aaaaaa")
SECOND = from_(
    run("second-1120-bbbbbb", B),
    Origin(RESUMED, "/h/runs/first-1120-aaaaaa/checkpoints/step-000060", 60, "ab" * 32, FIRST.id,
           seen=(SourceTokens(A, 6_000),)),
    from_step=60,
)  # fmt: skip
IMPORT = from_(
    run("gpt2-1120-cccccc"), Origin(IMPORTED, "hf://models/o/gpt2@c0", base_model="o/gpt2", layout="Hugging Face GPT-2")
)
TUNED = from_(
    run("tuned-1120-dddddd", B),
    Origin(STARTED, "/h/runs/gpt2-1120-cccccc/checkpoints/step-000000", 0, "cd" * 32, IMPORT.id, "o/gpt2"),
)
KNOWN = {each.id: each for each in (FIRST, SECOND, IMPORT, TUNED)}


def find(run_id: str) -> RunRecord:
    if run_id not in KNOWN:
        raise UserError("no such run")
    return KNOWN[run_id]


def test_tokens_add_up_source_by_source() -> None:
    assert lineage.seen_by(FIRST) == (SourceTokens(A, 10_000),)
    assert lineage.seen_by(SECOND) == (SourceTokens(A, 6_000), SourceTokens(B, 4_000))
    assert added([SourceTokens(A, 1)], [SourceTokens(A, 2), SourceTokens(B, 0)]) == (SourceTokens(A, 3),)
    assert lineage.words(FIRST) is None
    assert lineage.words(SECOND) == f"continued from {FIRST.id} at step 60: 6,000 tokens of {A}, 4,000 tokens of {B}"
    begins = f"initialised with the weights of {IMPORT.id} at step 0: 10,000 tokens of {B}"
    assert lineage.words(TUNED) == f"{begins} (what it had seen before is unknown)"


def test_the_chain_of_commands_begins_with_the_first_weights() -> None:
    def recipe(made: RunRecord) -> str:
        return f"{made.id[:5]}.toml"

    chain = lineage.commands([*lineage.ancestors(SECOND, find), SECOND], recipe)
    assert chain == (
        "gptctl run first.toml --host cloud --name again-1 --set train.keep_every=60",
        "gptctl fetch again-1 --step 60",
        "gptctl run secon.toml --host cloud --resume-from again-1@60",
    )
    assert lineage.commands([*lineage.ancestors(TUNED, find), TUNED], recipe) == (
        "gptctl import hf://models/o/gpt2@c0 --name again-1",
        "gptctl run tuned.toml --host cloud --set model.init_from=again-1@0",
    )
    unknown = from_(SECOND, dataclasses.replace(SECOND.facts.origin or Origin("", ""), run="elsewhere-1120-eeeeee"))
    assert lineage.ancestors(unknown, find) == ()


def test_what_a_checkpoint_carries_comes_back_and_names_no_folder() -> None:
    assert SECOND.plan is not None
    carried = lineage.lineage_of(SECOND, SECOND.plan)
    assert "/h/runs" not in json.dumps(carried)
    read = decode(Lineage, {**carried, "own_tokens": 4_000})
    assert read.seen == lineage.seen_by(SECOND) and read.from_step == 60
    assert read.origin is not None and (read.origin.run, read.origin.sha256) == (FIRST.id, "ab" * 32)
    assert data_differences(read.data, SECOND.recipe_data) == []
    assert data_differences(data_read(FIRST.recipe_data), SECOND.recipe_data) == [f"data.source was {A}, is {B}"]
    assert data_differences({}, SECOND.recipe_data) == [], "a checkpoint of an older version says nothing"


def compared(made: RunRecord, val_loss: float) -> Compared:
    made = dataclasses.replace(made, val_loss=val_loss, recipe_data=FIRST.recipe_data)
    return Compared(made)


@pytest.mark.parametrize(("base", "other"), [(FIRST, SECOND), (FIRST, TUNED), (SECOND, FIRST), (TUNED, SECOND)])
def test_a_descendant_is_marked_and_has_no_rank(base: RunRecord, other: RunRecord) -> None:
    result = compare([compared(base, 3.0), compared(other, 2.0)], base.id)
    ranks = {row.id: (row.rank, row.why) for row in result.runs}
    assert ranks[base.id][0] == 1
    rank, why = ranks[other.id]
    assert rank is None and why is not None and "descend" in why


def test_an_import_is_ranked_and_so_are_two_that_began_alike() -> None:
    imported = dataclasses.replace(IMPORT, outcome=Outcome.IMPORTED)
    result = compare([compared(FIRST, 3.0), compared(imported, 2.0)], FIRST.id)
    assert [row.rank for row in result.runs] == [1, 2]
    twin = dataclasses.replace(TUNED, id="twin-1120-ffffff")
    result = compare([compared(TUNED, 3.0), compared(twin, 2.0)], TUNED.id)
    assert [row.why for row in result.runs] == [None, None]


def test_a_continued_run_says_nothing_of_the_seed() -> None:
    seeds = [compared(FIRST, 3.0)]
    for number, made in enumerate((SECOND, SECOND), start=1):
        train = {**(FIRST.recipe_data.get("train") or {}), "seed": number}
        recipe = {**FIRST.recipe_data, "train": train}
        seeds.append(Compared(dataclasses.replace(made, id=f"s{number}", val_loss=2.0 + number, recipe_data=recipe)))
    assert by_recipe(seeds, [], Metric()) == by_recipe(seeds[:1], [], Metric())


def test_the_report_has_origin_own_tokens_and_own_dollars(tmp_path: Path) -> None:
    part = lineage.part(SECOND, [FIRST], 1.5, lambda made: f"{made.id}/recipe.toml")
    assert (part.own_tokens, part.own_usd, part.origin) == (4_000, 1.5, SECOND.facts.origin)
    assert part.commands[0].startswith(f"gptctl run {FIRST.id}/recipe.toml")
