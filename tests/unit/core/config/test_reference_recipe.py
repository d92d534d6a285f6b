"""model.json and train.json of the reference trainer as a recipe: every key, its default, what has no counterpart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.models.import_recipe import import_recipe
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.config.recipe_tables.reference_recipe import gpus_in, reference_recipe
from orchestrator.core.errors import UserError

MODEL = {
    "vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12, "drop_rate": 0.1,
    "qkv_bias": False,
}  # fmt: skip
TRAIN = {
    "microbatch_size": 12, "checkpoint_interval": 617, "dataset": "gpjt/fineweb-gpt2-tokens",
    "min_train_tokens": 3_260_190_720, "start_train_token": 0, "start_val_token": 0,
}  # fmt: skip
BEST = {**TRAIN, "clipping_max_norm": 3.5, "weight_decay": 0.01, "learning_rate": 0.0014,
        "schedule_learning_rate": True, "warmup_period_percent": 5}  # fmt: skip


def run_folder(path: Path, model: dict[str, Any], train: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    (path / "model.json").write_text(json.dumps(model))
    (path / "train.json").write_text(json.dumps(train))
    return path


def test_the_baseline_is_the_bundled_recipe_key_by_key(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "8xa100m40-baseline", MODEL, TRAIN)
    assert import_recipe(folder, None, tmp_path / "out.toml") == 0
    ours, theirs = load_recipe("chinchilla_163m_baseline"), load_recipe(str(tmp_path / "out.toml"))
    assert theirs.model == ours.model
    assert theirs.data == ours.data
    same = {"tokens": ours.train.tokens}  # 3,260,190,720 is 20 tokens a parameter
    assert theirs.train.model_copy(update=same) == ours.train


def test_the_scheduled_run_on_one_card_has_its_own_figures(tmp_path: Path) -> None:
    train = {**BEST, "microbatch_size": 6, "gradient_accumulation_steps": 16, "use_amp": False, "random_seed": 7}
    folder = run_folder(tmp_path / "mine", {**MODEL, "tie_weights": True, "qkv_bias": True}, train)
    import_recipe(folder, 1, tmp_path / "out.toml")
    recipe = load_recipe(str(tmp_path / "out.toml"))
    train_, model = recipe.train, recipe.model
    assert (train_.global_batch, train_.learning_rate, train_.schedule) == (96, 0.0014, "cosine")
    assert (train_.warmup_fraction, train_.min_learning_rate_fraction, train_.grad_clip) == (0.05, 0.1, 3.5)
    assert (train_.precision, train_.tf32, train_.seed, train_.decay) == ("fp32", False, 7, "all")
    assert (model.tie_embeddings, model.qkv_bias, model.init) == (True, True, "torch")


@pytest.mark.parametrize(
    ("model", "train", "said"),
    [
        ({"moe": {"num_experts": 6}}, {}, "moe has no counterpart"),
        ({}, {"dropout_schedule": 1}, "dropout_schedule has no counterpart"),
        ({"n_heads": None}, {}, "n_head"),
        ({"drop_rate": "much"}, {}, "dropout"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(
    tmp_path: Path, model: dict[str, Any], train: dict[str, Any], said: str
) -> None:
    folder = run_folder(tmp_path / "8xa100", {**MODEL, **model}, {**TRAIN, **train})
    with pytest.raises(UserError, match=said):
        import_recipe(folder, None, tmp_path / "out.toml")
    assert not (tmp_path / "out.toml").exists()


def test_a_recipe_is_never_replaced_and_the_gpus_are_asked_for(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "mine", MODEL, TRAIN)
    with pytest.raises(UserError, match="how many GPUs"):
        import_recipe(folder, None, tmp_path / "out.toml")
    (tmp_path / "out.toml").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        import_recipe(folder, 8, tmp_path / "out.toml")
    assert [gpus_in(name) for name in ("8xa100m40-baseline", "1xrtx3090", "mine")] == [8, 1, None]
    assert reference_recipe("a", MODEL, {**TRAIN, "min_train_tokens": -1}, gpus=8)["train"]["tokens"] == "all"  # type: ignore[index]
