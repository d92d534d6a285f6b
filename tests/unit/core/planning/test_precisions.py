"""The rule of `plan`: on the same card a slower precision never predicts a higher rate."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.config.recipe import Recipe, load_recipe
from orchestrator.core.machines import MachineType, all_machine_types, machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.planning.rates import MeasuredRate, number_type
from tests.support.files.repository import REPOSITORY
from trainer.arithmetic import flop_per_token

BASE = load_recipe("chinchilla_163m_baseline", search=[REPOSITORY / "recipes"])
SLOWEST_FIRST = (("fp32", False), ("fp32", True), ("fp16", True), ("bf16", True))
CARDS = [each for each in all_machine_types() if each.cuda] + [machine_type("1xGPU-24GB"), machine_type("8xGPU-40GB")]
SIZES = st.fixed_dictionaries(
    {
        "n_layer": st.sampled_from([1, 4, 12, 24]),
        "n_embd": st.sampled_from([64, 512, 768, 1536]),
        "n_head": st.just(8),
        "context_length": st.sampled_from([128, 512, 1024]),
        "vocab_size": st.sampled_from([257, 50_257]),
        "tie_embeddings": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.1]),
    }
)
TRAINS = st.fixed_dictionaries(
    {
        "global_batch": st.sampled_from([16, 96, 480, 512]),
        "optimizer": st.sampled_from(["adamw", "muon"]),
        "compile": st.sampled_from([None, False]),
        "activation_checkpointing": st.booleans(),
        "grad_clip": st.sampled_from([None, 1.0]),
    }
)


def of(model: dict[str, object], train: dict[str, object], precision: str, tf32: bool) -> Recipe:
    """The baseline with another shape and precision."""
    table = BASE.resolved()
    changed = {"model": model, "train": {**train, "precision": precision, "tf32": tf32}}
    return Recipe.from_resolved({**table, **{key: {**table[key], **value} for key, value in changed.items()}})  # type: ignore[dict-item]


def rates_of(
    machine: MachineType, model: dict[str, object], train: dict[str, object], measured: MeasuredRate | None = None
) -> dict[str, float]:
    """The rate of each precision that fits, slowest precision first."""
    found = {}
    for precision, tf32 in SLOWEST_FIRST:
        made = make_plan(
            of(model, train, precision, tf32), None, machine, None, now=0.0, rates=[measured] if measured else []
        )
        if made.fits:
            found[f"{precision}, tf32 {tf32}"] = made.tokens_per_second
    return found


def rises(rates: dict[str, float]) -> bool:
    return all(slow <= fast * 1.000001 for slow, fast in itertools.pairwise(rates.values()))


@given(st.sampled_from(CARDS), SIZES, TRAINS)
@settings(max_examples=40)
def test_a_slower_precision_never_predicts_a_higher_rate(
    machine: MachineType, model: dict[str, object], train: dict[str, object]
) -> None:
    rates = rates_of(machine, model, train)
    assert rises(rates), rates


@given(st.sampled_from(CARDS), st.sampled_from(SLOWEST_FIRST), st.floats(0.2, 5.0))
@settings(max_examples=40)
def test_nor_where_one_precision_was_measured(machine: MachineType, measured: tuple[str, bool], factor: float) -> None:
    model: dict[str, object] = {"vocab_size": 50_257}
    recipe = of(model, {}, *measured)
    computed = make_plan(recipe, None, machine, None, now=0.0).tokens_per_second
    flop = flop_per_token(recipe.model.config())
    ours = MeasuredRate(machine.name, computed * factor, flop, 1.7e9, True, number_type(recipe, machine))
    rates = rates_of(machine, model, {}, ours)
    assert rises(rates), rates


@pytest.mark.parametrize("machine", ["8xA100-80GB", "8x4090", "1x3090"])
def test_plain_fp32_is_far_behind_half_precision(machine: str) -> None:
    rates = rates_of(machine_type(machine), {}, {})
    assert 0.95 * rates["bf16, tf32 True"] <= rates["fp16, tf32 True"] <= rates["bf16, tf32 True"]  # more loss chunks
    assert rates["bf16, tf32 True"] > 1.5 * rates["fp32, tf32 False"]
