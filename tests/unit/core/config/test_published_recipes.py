"""Each recipe of a published run against its source, figure by figure. The [[published]] tables name the sources; the
figures here were copied from there by hand, not from the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.core.config.recipe import Recipe, load_recipe
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from tests.support.files.repository import REPOSITORY
from trainer.arithmetic import parameter_count

RECIPES = REPOSITORY / "recipes"
STACK = {
    "model.dropout": 0.0, "train.grad_clip": 3.5, "train.weight_decay": 0.01, "train.learning_rate": 1.4e-3,
    "train.schedule": "cosine", "train.warmup_fraction": 0.05, "train.min_learning_rate_fraction": 0.1,
    "train.global_batch": 96, "train.precision": "fp16", "model.qkv_bias": False, "parameters": 163_009_536,
}  # fmt: skip
SMALL = {"model.n_layer": 12, "model.n_head": 12, "model.n_embd": 768}
FIGURES = {
    "published/tinystories_20k": {
        **SMALL, "train.global_batch": 8, "train.learning_rate": 3e-4, "model.qkv_bias": False,
        "model.context_length": 128, "train.precision": "fp16", "train.betas": (0.9, 0.95), "train.grad_clip": 1.0,
        "train.weight_decay": 0.1, "model.dropout": 0.1, "data.prepare.documents": 25_000,
        "data.prepare.hold_out_every": 5, "published.train_loss": 1.86, "published.val_loss": 2.05,
        "published.first_loss": 21.5,
    },
    "published/gpt_124m": {
        **SMALL, "model.vocab_size": 50_304, "model.context_length": 1024, "train.precision": "fp32",
        "train.tokens": 10_000_000_000, "data.validation.tokens": 100_000_000, "published.machine": "8x4090",
        "published.hours": 13.0, "published.val_loss": 2.97, "published.train_loss": 2.88,
        "eval.choices": ("hellaswag",), "model.tie_embeddings": True, "train.learning_rate": 1.8e-3,
    },
    "published/gpt2_124m_rtx3050": {
        **SMALL, "model.context_length": 1024, "model.dropout": 0.1, "model.qkv_bias": False,
        "model.tie_embeddings": True, "parameters": 124_412_160, "train.tokens": 1_100_000,
        "published.val_loss": 5.330, "published.train_loss": 5.416, "published.hours": 0.984,
    },
    "published/gpt2_163m_overtrained": {
        **STACK, "train.tokens": 6_400_000_000, "published.test_loss": 3.324953, "published.tokens_per_second": 22_687,
    },
    "published/gpt2_226m": {**STACK, "model.n_embd": 896, "model.n_head": 14, "model.n_layer": 14,
                            "parameters": 225_978_368},
    "published/gpt2_77m_gtx1660": {
        **STACK, "model.n_embd": 512, "model.n_head": 8, "model.n_layer": 8, "model.context_length": 512,
        "train.tokens": 1_538_662_400, "train.global_batch": 64, "parameters": 76_933_120,
        "train.checkpoint_every": 360,
    },
    "chinchilla_163m_baseline": {
        "train.learning_rate": 4e-4, "train.schedule": "constant", "train.weight_decay": 0.1, "train.decay": "all",
        "model.dropout": 0.1, "train.betas": (0.9, 0.999), "train.grad_clip": None, "published.test_loss": 3.691526,
        "published.tokens_per_second": 265_573, "published.tokens": 3_260_252_160,
    },
    "interventions/full_fp32": {"train.precision": "fp32", "train.tf32": False, "published.test_loss": 3.679,
                                "published.tokens_per_second": 111_535, "published.hours": 8.12},
    "interventions/gradient_clipping": {"train.grad_clip": 3.5, "published.test_loss": 3.678},
    "interventions/no_dropout": {"model.dropout": 0.0, "published.test_loss": 3.641},
    "interventions/qkv_bias": {"model.qkv_bias": True, "published.test_loss": 3.669, "train.tokens": 3_260_190_720},
    "interventions/scheduled_learning_rate": {"train.schedule": "cosine", "published.test_loss": 3.602},
    "interventions/weight_decay_001": {"train.weight_decay": 0.01, "published.test_loss": 3.643},
    "interventions/weight_decay_033724": {"train.weight_decay": 0.33724, "published.train_loss": 3.867},
    "interventions/weight_tying": {"model.tie_embeddings": True, "published.test_loss": 3.874,
                                   "train.tokens": 3_260_190_720},
    "interventions/stack": {**STACK, "published.test_loss": 3.577761, "published.cost_usd": 37.62},
    "interventions/stack_2": {**STACK, "model.qkv_bias": True, "parameters": 163_037_184,
                              "published.test_loss": 3.604342, "train.tokens": 3_260_190_720},
    "interventions/stack_3": {**STACK, "train.weight_decay": 0.1, "published.test_loss": 3.590266},
    "interventions/experts": {
        **STACK, "model.experts": 6, "model.active_experts": 2, "model.balance_loss": 0.005,
        "train.tokens": 8_928_215_040, "parameters": 446_410_752, "train.checkpoint_every": 1_500,
    },
    "interventions/low_rank": {**STACK, "model.embedding_rank": 128, "model.low_rank": "both",
                               "train.tokens": 3_260_190_720, "parameters": 98_877_184},
    "interventions/no_attention_out_bias": {
        **STACK, "model.attention_out_bias": False, "model.bias": True, "parameters": 163_000_320,
        "published.test_loss": 3.420089, "train.tokens": 3_260_190_720,
    },
}  # fmt: skip


def recipe(name: str) -> Recipe:
    return load_recipe(name, search=[RECIPES])


def found(of: Recipe, key: str) -> object:
    if key == "parameters":
        return parameter_count(of.model.config())
    first, *rest = key.split(".")
    value: object = of.published[0] if first == "published" else getattr(of, first)
    for name in rest:
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [(name, key, value) for name, figures in FIGURES.items() for key, value in figures.items()],
)
def test_a_recipe_has_the_figure_of_its_source(name: str, key: str, value: object) -> None:
    assert found(recipe(name), key) == value


def test_every_published_recipe_and_intervention_is_in_the_table() -> None:
    here = {str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*/*.toml")}
    assert here - FIGURES.keys() == {"interventions/learning_rate_14e4"}, "published for no result of its own"
    assert recipe("interventions/learning_rate_14e4").published == ()


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: path.stem)
def test_an_anchor_is_said_on_one_line_with_its_source(path: Path) -> None:
    for each in recipe(str(path)).published:
        assert re.search(r"\(https://\S+\)$", each.words()), each.words()
        assert each.machine is None or machine_type(each.machine)


def test_the_job_of_the_4_gb_card_fits_it() -> None:
    made = make_plan(recipe("published/gpt2_124m_rtx3050"), None, machine_type("1x3050Laptop"), None, now=0.0)
    assert (made.fits, made.micro_batch, made.why) == (True, 1, "")
    assert made.hours.train < 59.03 / 60, "what ran in an hour is not planned for longer"
