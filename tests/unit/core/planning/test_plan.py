"""The plan's arithmetic, against published figures and by its own rules."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe, load_recipe
from orchestrator.core.errors import UserError
from orchestrator.core.machines import all_machine_types, machine_type
from orchestrator.core.planning import rates
from orchestrator.core.planning.batch import split
from orchestrator.core.planning.plan import CostUsd, Plan
from orchestrator.core.planning.planner import amended, make_plan
from orchestrator.core.planning.ranking import in_order, mark
from orchestrator.core.planning.rates import MeasuredRate, is_compiled
from orchestrator.core.planning.run_config import train_config
from orchestrator.core.ports import Guard, Offer
from tests.support.files.repository import REPOSITORY
from trainer.contract import RunConfig

RECIPES = REPOSITORY / "recipes"
NOW = 1_795_000_000.0
LOCAL = HostSpec(name="local", provider="local")
BOX = HostSpec(name="box", machine="1x3090", price_per_hour_usd=0.11)
DESIGN_KEYS = {
    "host", "machine", "ranks", "micro_batch", "accumulation", "steps", "tokens", "epochs", "tokens_per_second",
    "rate_source", "fits", "why", "hours", "cost_usd", "guard", "ending", "digest", "global_batch", "parameters",
    "price_per_hour_usd", "price_source", "limits", "ceiling_usd", "warnings",
}  # fmt: skip


def recipe(name: str = "chinchilla_163m", *overrides: str) -> Recipe:
    return load_recipe(name, overrides, search=[RECIPES])


def plan(
    what: Recipe, machine: str = "8xA100-40GB", host: HostSpec | None = None, offer: Offer | None = None, **more: object
) -> Plan:
    return make_plan(what, host, machine_type(machine), offer, now=NOW, **more)  # type: ignore[arg-type]


def test_the_baseline_is_planned_at_the_speed_of_our_code_not_of_its_authors() -> None:
    made = plan(recipe("chinchilla_163m_baseline"))
    assert made.rate_source.startswith("computed, compiled: MFU ")
    assert 1_000_000 < made.tokens_per_second < 1_300_000  # its author's code reached 265,573
    uncompiled = plan(recipe("chinchilla_163m_baseline", "train.compile=false"))
    assert uncompiled.rate_source.startswith("computed, uncompiled: MFU ")
    assert 0.6 < uncompiled.tokens_per_second / made.tokens_per_second < 0.9


def test_every_intervention_is_compiled_as_the_baseline_is() -> None:
    names = ["chinchilla_163m_baseline", *sorted(f"interventions/{p.stem}" for p in RECIPES.glob("interventions/*"))]
    assert len(names) >= 9
    assert all(is_compiled(recipe(f"{name}.toml"), machine_type("8xA100-40GB")) for name in names)


def test_the_reference_job_has_the_published_size() -> None:
    made = plan(recipe())
    assert (made.parameters, made.steps, made.tokens) == (163_009_536, 33_165, 3_260_252_160)
    assert (made.ranks, made.micro_batch, made.accumulation, made.global_batch) == (8, 12, 1, 96)


def test_hours_and_dollars_add_up() -> None:
    made = plan(recipe(), offer=Offer("lambda", "8xA100-40GB", 10.0, source="lambda API"))
    stages = ("boot", "provision", "data", "train", "fetch")
    hours, cost_usd = dataclasses.asdict(made.hours), dataclasses.asdict(made.cost_usd)
    assert tuple(hours) == (*stages, "total")
    assert hours["total"] == pytest.approx(sum(hours[stage] for stage in stages))
    for stage in (*stages, "total"):
        assert cost_usd[stage] == pytest.approx(hours[stage] * 10.0)
    estimate, slack_usd = made.cost_usd.estimate, made.hours.train * made.uncertainty * 10.0
    assert estimate is not None and estimate.cost_usd == made.cost_usd.total
    assert (estimate.less_usd, estimate.more_usd) == pytest.approx((slack_usd, slack_usd))
    assert (made.price_per_hour_usd, made.price_source) == (10.0, "lambda, lambda API")


def test_json_has_the_keys_scripts_rely_on_and_comes_back() -> None:
    made = plan(recipe())
    text = json.dumps(made.to_json(), allow_nan=False)
    assert json.loads(text).keys() >= DESIGN_KEYS
    again = Plan.from_json({**json.loads(text), "key_of_a_later_version": 1})
    assert again == made
    assert again.digest == made.digest


def test_the_digest_changes_with_the_plan() -> None:
    made = plan(recipe())
    assert made.digest != dataclasses.replace(made, steps=made.steps + 1).digest


def test_every_recipe_plans_on_every_machine_without_any_data() -> None:
    names = [str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.toml")]
    for name in names:
        for machine in all_machine_types():
            made = plan(recipe(name), machine.name)
            assert made.hours.total > 0
            assert made.fits or made.why
            assert made.micro_batch * made.accumulation * made.ranks == made.global_batch or not made.fits


def test_a_batch_that_does_not_divide_names_the_nearest_that_does() -> None:
    made = plan(recipe("chinchilla_163m", "train.global_batch=100"))
    assert not made.fits
    assert "100" in made.why
    assert "96" in made.why
    by_row = plan(recipe("chinchilla_163m", 'machines."8xA100-40GB".micro_batch=7'))
    assert not by_row.fits
    assert "the nearest that does is 112" in by_row.why


def test_a_micro_batch_that_does_not_fit_says_how_much_it_needs() -> None:
    made = plan(recipe("chinchilla_163m", "train.global_batch=960", 'machines."8xA100-40GB".micro_batch=120'))
    assert not made.fits
    assert "GiB" in made.why
    tiny = plan(recipe("gpt2_124m_fineweb_edu"), "1xGPU-1GB")
    assert not tiny.fits
    assert "even micro-batch 1" in tiny.why


@given(
    whole=st.integers(1, 4096),
    ranks=st.integers(1, 16),
    micro_batch=st.integers(1, 128),
)
def test_a_split_never_changes_the_global_batch(whole: int, ranks: int, micro_batch: int) -> None:
    batch = split(whole, ranks, micro_batch)
    if batch.fits:
        assert batch.ranks * batch.micro_batch * batch.accumulation == whole
        return
    nearest = int(batch.why.rsplit(" ", 1)[1])
    assert split(nearest, ranks, micro_batch).fits
    assert abs(nearest - whole) <= ranks * micro_batch


def test_auto_on_cpu_keeps_the_micro_batch_small() -> None:
    made = plan(recipe("quickstart", "train.global_batch=60"), "4xCPU", LOCAL)
    assert (made.micro_batch, made.accumulation, made.fits) == (5, 3, True)
    assert "CPU" in made.rate_source


def rate(machine: str = "8xA100-40GB", **changes: object) -> MeasuredRate:
    base = MeasuredRate(machine, 1_000_000.0, 854_438_400, 1_790_000_000.0, compiled=True, precision="bf16")
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_what_we_measured_comes_before_what_is_computed() -> None:
    ours = rate(precision="fp16")
    made = plan(recipe("chinchilla_163m_baseline"), rates=[ours])
    assert made.tokens_per_second == pytest.approx(1_000_000)
    assert made.rate_source == "measured by us on 2026-09-21"


@pytest.mark.parametrize(
    "other",
    [
        rate(machine="1x3090"),
        rate(compiled=False),
        rate(precision="fp32"),
        rate(flop_per_token=1_000_000),
    ],
)
def test_a_rate_of_another_kind_does_not_count(other: MeasuredRate) -> None:
    assert "computed" in plan(recipe(), rates=[other]).rate_source


def test_the_newest_rate_of_the_same_machine_wins_and_one_card_speaks_for_eight() -> None:
    one, old, new = (
        rate("1xH100", tokens_per_second=400_000.0, measured_at=1_794_000_000.0),
        rate("8xH100", tokens_per_second=2_000_000.0, measured_at=1_780_000_000.0),
        rate("8xH100", tokens_per_second=3_000_000.0, measured_at=1_785_000_000.0),
    )
    assert plan(recipe(), "8xH100", rates=[one, old, new]).tokens_per_second == pytest.approx(3_000_000)
    scaled = plan(recipe(), "8xH100", rates=[one])
    assert scaled.tokens_per_second == pytest.approx(400_000 * 8 * 0.95)
    assert "scaled" in scaled.rate_source


def test_a_computed_rate_says_its_peak_and_its_assumption() -> None:
    assert plan(recipe(), "8xH100").rate_source == "computed, compiled: MFU 32% of 989 TFLOP/s"
    assert plan(recipe(), "1xGPU-24GB").rate_source.endswith("of 30 TFLOP/s, assumed")


def test_a_card_without_bf16_plans_with_fp16_and_says_so() -> None:
    made = plan(recipe(), "1xT4")
    assert "65 TFLOP/s" in made.rate_source
    assert any("no bf16" in warning for warning in made.warnings)


def test_epochs_are_counted_over_the_window_and_said() -> None:
    made = plan(recipe("chinchilla_163m", "data.start_token=1000"), dataset_tokens=2_130_000_000 + 1000)
    assert made.epochs == pytest.approx(3_260_190_720 / 2_130_000_000)
    assert made.warnings[0].startswith("1.53 epochs")
    assert plan(recipe()).epochs is None


def test_max_epochs_refuses() -> None:
    with pytest.raises(UserError, match=r"1\.63 epochs of the data, more than 1"):
        plan(recipe("chinchilla_163m", "train.max_epochs=1"), dataset_tokens=2_000_000_000)


def test_all_takes_the_window_and_needs_to_know_it() -> None:
    everything = recipe("chinchilla_163m", 'train.tokens="all"')
    assert plan(everything, dataset_tokens=1_000_000).steps == 11  # 1,000,000 / 98,304, rounded up
    assert plan(recipe("chinchilla_163m", 'train.tokens="all"', "data.tokens=98304")).steps == 1
    with pytest.raises(UserError, match="length is known"):
        plan(everything)


@pytest.mark.parametrize("tokens", [0, 1, 1024])
def test_an_empty_dataset_is_refused(tokens: int) -> None:
    with pytest.raises(UserError, match="less than one sequence"):
        plan(recipe(), dataset_tokens=tokens)


def test_a_machine_of_ones_own_boots_in_no_time_at_its_own_price() -> None:
    made = plan(recipe(), "1x3090", BOX)
    assert (made.hours.boot, made.price_per_hour_usd, made.price_source) == (0, 0.11, "inventory")
    assert (made.ceiling_usd, made.guard) == (None, Guard())
    free = plan(recipe("quickstart"), "2xCPU", LOCAL)
    assert free.cost_usd.total == 0


def test_a_machine_nobody_sells_has_no_price_but_hours() -> None:
    made = plan(recipe(), "8x4090")
    assert made.price_per_hour_usd is None
    assert made.cost_usd == CostUsd()
    assert made.hours.total > 0


def test_an_old_bundled_price_is_said_to_be_old() -> None:
    assert any("days old" in warning for warning in plan(recipe()).warnings)
    fresh = make_plan(recipe(), None, machine_type("8xA100-40GB"), None, now=1_787_100_000.0)  # six days later
    assert not any("days old" in warning for warning in fresh.warnings)


def test_cheapest_and_fastest_are_marked_among_those_that_fit() -> None:
    plans = in_order(
        [plan(recipe("gpt2_124m_fineweb_edu"), name) for name in ("1xGPU-1GB", "8x4090", "8xB200", "1xH100")]
    )
    assert [made.machine for made in plans] == ["1xH100", "8xB200", "8x4090", "1xGPU-1GB"]
    assert mark(plans) == [("cheapest",), ("fastest",), (), ()]
    assert mark([]) == []


def test_a_guess_does_not_beat_a_measured_figure_by_its_middle() -> None:
    one, other = Offer("a", "8xA100-40GB", 16.0, source="x"), Offer("b", "8xGPU-40GB", 4.0, source="x")
    ours = rate(tokens_per_second=1_000_000.0)
    measured = plan(recipe(), "8xA100-40GB", offer=one, rates=[ours])
    guessed = plan(recipe(), "8xGPU-40GB", offer=other)
    total = (measured.cost_usd.total or 0) * 1.01
    guessed = dataclasses.replace(
        guessed,
        cost_usd=dataclasses.replace(guessed.cost_usd, total=total / 1.2, less_usd=total / 2, more_usd=total / 2),
    )
    assert (guessed.cost_usd.total or 0) < (measured.cost_usd.total or 0)
    assert in_order([guessed, measured]) == [measured, guessed]
    assert mark([guessed, measured])[1] == ("cheapest", "fastest")


def test_a_free_machine_that_takes_a_year_is_not_the_cheapest() -> None:
    year = plan(recipe(), "2xCPU", LOCAL)
    assert year.cost_usd.total == 0
    assert mark([year, plan(recipe())]) == [(), ("cheapest", "fastest")]


def test_the_ending_names_store_and_dollars() -> None:
    cloud = {"name": "cloud", "provider": "lambda", "machine": "8xA100-40GB"}
    offer = Offer("lambda", "8xA100-40GB", 16.0, source="lambda API")
    stored = HostSpec(**cloud, checkpoint_store="s3://bucket/x", guard="key-on-box")  # type: ignore[arg-type]
    assert plan(recipe(), host=stored, offer=offer).ending.endswith("and the machine ends itself")
    held = plan(recipe(), host=HostSpec(**cloud, guard="key-on-box"), offer=offer).ending  # type: ignore[arg-type]
    assert held.startswith("If this computer is off when training ends: up to $")
    assert held.endswith("more, and the checkpoints are LOST. To prevent: set checkpoint_store")


def test_an_amended_plan_keeps_the_global_batch_and_changes_the_digest() -> None:
    made = plan(recipe(), "1x3090", BOX)
    changed = amended(made, made.micro_batch // 2, tokens_per_second=40_000)
    assert changed.fits
    assert changed.micro_batch * changed.accumulation * changed.ranks == made.global_batch
    assert changed.hours.train == pytest.approx(made.tokens / 40_000 / 3600)
    assert changed.hours.total == pytest.approx(sum(vars(changed.hours).values()) - changed.hours.total)
    assert changed.cost_usd.total == pytest.approx(changed.hours.total * 0.11)
    assert changed.digest != made.digest
    with pytest.raises(UserError, match="the nearest that does is"):
        amended(made, 7)


def test_config_json_is_recipe_and_plan() -> None:
    what = recipe("chinchilla_163m_baseline", "train.grad_clip=0", "train.keep_every=1000")
    made = plan(what)
    config = train_config(
        what, made, train_files=["/d/train.bin"], validation_files=["/d/val.bin"], validation_tokens=983_040
    )
    assert RunConfig.from_json(config.to_json()) == config
    assert (config.train.steps, config.train.micro_batch, config.train.precision) == (33_165, 12, "fp16")
    assert config.train.grad_clip is None
    assert config.retention.keep_every == 1000
    assert (config.data.train_files, config.data.validation_tokens) == (("/d/train.bin",), 983_040)
    assert (config.peak_flops_per_gpu, config.device) == (312e12, "cuda")
    assert config.model.dropout == 0.1


def test_config_json_for_cpu_decodes_with_the_prepared_tokenizer() -> None:
    what = recipe("quickstart")
    config = train_config(what, plan(what, "2xCPU", LOCAL), train_files=["/d/train.bin"])
    assert (config.device, config.peak_flops_per_gpu, config.data.tokenizer) == ("cpu", 0.0, "bytes")
    assert config.prompts == ("def ",)


def test_a_stored_plan_that_is_damaged_is_refused_by_its_key() -> None:
    value = plan(recipe()).to_json()
    with pytest.raises(UserError, match='stored plan: hours: train: "long" is not a number'):
        Plan.from_json({**value, "hours": {**value["hours"], "train": "long"}})
    with pytest.raises(UserError, match="stored plan: steps is missing"):
        Plan.from_json({key: item for key, item in value.items() if key != "steps"})


def test_a_model_beyond_one_card_is_told_what_cutting_it_would_need() -> None:
    whole = plan(load_recipe("gpt2_xl_1558m", ["train.parallel=ddp"]), machine="8xA10G")
    assert not whole.fits
    assert "even micro-batch 1 needs about 36.5 GiB of 23.4 GiB per GPU" in whole.why
    assert 'train.parallel = "fsdp" fits at micro-batch 32: about 21.1 GiB' in whole.why


@pytest.mark.parametrize(
    ("name", "machine", "words"),
    [
        (
            "gpt2_xl_1558m",
            "8xA10G",
            "DDP does not fit at micro-batch 1 (about 36.5 GiB) and FSDP fits at micro-batch 32",
        ),
        (
            "gpt2_large_774m",
            "8xA100-40GB",
            "DDP fits at micro-batch 8 (about 33.8 GiB) and FSDP fits at micro-batch 16",
        ),
    ],
)
def test_a_cut_model_is_compared_with_whole_copies(name: str, machine: str, words: str) -> None:
    made = plan(load_recipe(name), machine=machine)
    assert made.fits and any(words in each for each in made.warnings)


@pytest.mark.parametrize(
    ("recipe_name", "parameters"),
    [("gpt2_medium_355m", 354_823_168), ("gpt2_large_774m", 774_030_080), ("gpt2_xl_1558m", 1_557_611_200)],
)
def test_the_larger_gpt2s_have_openais_sizes(recipe_name: str, parameters: int) -> None:
    made = plan(load_recipe(recipe_name), machine="8xH100")
    assert (made.parameters, made.fits, made.steps) == (parameters, True, 19_074)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("train.optimizer=muon", "train.parallel must be ddp with optimizer = muon"),
        ("train.zero_stage=1", "train.zero_stage must be 0 with parallel = fsdp"),
        ("task.kind=instruct", "train.parallel must be ddp with"),
    ],
)
def test_what_fsdp_cannot_do_is_refused_before_anything_is_bought(setting: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_recipe("gpt2_xl_1558m", [setting])


@pytest.mark.parametrize(
    ("machine", "gbit", "words"),
    [
        ("2x8xH100", 100.0, "2 x 8xH100 over 100 Gbit/s: 2.0x slower than one, at 4.1x the price for the same tokens"),
        ("2x8xH100", 400.0, "only 1.2x as fast as one, at 1.7x the price"),
        ("2x1x3090", 1.0, "2 x 1x3090 over 1 Gbit/s: 3.4x slower than one"),
        ("2x8xH100", None, "over 10 Gbit/s (assumed): "),
    ],
)
def test_more_machines_that_are_slower_are_called_so(machine: str, gbit: float | None, words: str) -> None:
    host = HostSpec(name="cluster", provider="ssh", machine=machine, link_gbit_per_s=gbit)
    made = plan(recipe(), machine, host=host)
    (said,) = [each for each in made.warnings if " over " in each]
    assert words in said
    assert said.endswith("train two interventions instead, one on each: gptctl sweep")


def test_machines_that_are_worth_it_are_not_warned_of() -> None:
    host = HostSpec(name="cluster", provider="ssh", machine="2x8xA100-80GB", link_gbit_per_s=3200)
    made = plan(recipe("gpt2_124m_fineweb_edu"), "2x8xA100-80GB", host=host)
    assert made.rate_source.endswith("2 nodes computed")
    assert not [each for each in made.warnings if " over " in each]


@pytest.mark.parametrize(("mfu", "said"), [(0.004, "below 1%"), (0.0099, "below 1%"), (0.01, "1%"), (0.38, "38%")])
def test_a_little_use_of_a_large_gpu_is_not_called_none(mfu: float, said: str) -> None:
    assert rates._share(mfu) == said
