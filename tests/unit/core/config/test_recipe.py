"""Recipes: what loads, what is refused, and what the message says."""

from __future__ import annotations

import dataclasses
import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.config import recipe as recipes
from orchestrator.core.config.recipe import Recipe, load_recipe
from orchestrator.core.config.recipe_tables.model_table import Model
from orchestrator.core.config.toml_tables import SIZE_LIMIT_BYTES, build
from orchestrator.core.errors import UserError
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.planning.run_config import train_config
from tests.support.files.repository import REPOSITORY
from trainer.config.config_tables import RateFactors
from trainer.contract import DataConfig, ModelConfig, RetentionConfig, RunConfig, TrainConfig

SMALLEST = 'name = "small"\n[data]\nsource = "tokens.bin"\n'


def write(folder: Path, text: str, name: str = "small.toml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def refused(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(write(folder, text), overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").rglob("*.toml")), ids=lambda path: path.stem)
def test_every_bundled_recipe_loads_and_is_called_like_its_file(path: Path) -> None:
    assert load_recipe(str(path)).name == path.stem


def test_a_recipe_is_found_by_name_and_by_path() -> None:
    by_name = load_recipe("interventions/qkv_bias", search=[REPOSITORY / "recipes"])
    assert by_name == load_recipe(str(REPOSITORY / "recipes" / "interventions" / "qkv_bias.toml"))


def test_the_reference_job_is_what_the_design_says() -> None:
    recipe = load_recipe(str(REPOSITORY / "recipes" / "chinchilla_163m.toml"))
    assert (recipe.train.tokens, recipe.train.global_batch, recipe.train.grad_clip) == ("chinchilla", 96, 3.5)
    assert recipe.micro_batch_for("8xA100-40GB") == 12
    assert recipe.micro_batch_for("8x4090") is None  # a machine without a row gets auto


@pytest.mark.parametrize(
    ("table", "config", "left_out"),
    [
        (Model, ModelConfig, set()),
        (recipes.Train, TrainConfig, {"steps", "micro_batch", "require_compile", "rate_factors"}),
        (recipes.RateFactors, RateFactors, set()),
        (recipes.Train, RetentionConfig, {"require_safe"}),
        (recipes.Data, DataConfig, {"train_files", "validation_files", "validation_start_token", "validation_tokens"}),
    ],
)
def test_the_tables_mirror_the_trainers_contract(table: type, config: type, left_out: set[str]) -> None:
    ours = {name: field.default for name, field in table.model_fields.items()}  # type: ignore[attr-defined]
    theirs = {field.name: field.default for field in dataclasses.fields(config) if field.name not in left_out}
    assert theirs.keys() <= ours.keys()
    assert {name: ours[name] for name in theirs if name != "tokenizer"} == {
        name: value for name, value in theirs.items() if name != "tokenizer"
    }


def test_it_survives_the_ledger(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST), ["train.betas=[0.8, 0.9]", 'machines."8xH100".micro_batch=12'])
    again = Recipe.from_resolved(json.loads(json.dumps(recipe.resolved())))
    assert again == recipe
    assert again.digest == recipe.digest


def test_the_digest_follows_the_meaning_not_the_writing(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, SMALLEST))
    spelled = load_recipe(write(tmp_path, SMALLEST + "[train]\nseed = 42 # the default\n", "b.toml"))
    other = load_recipe(write(tmp_path, SMALLEST), ["train.seed=7"])
    assert plain.digest == spelled.digest
    assert plain.digest != other.digest


def test_set_takes_toml_values_and_bare_words(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    recipe = load_recipe(path, ["train.seed=7", "train.schedule=wsd", "train.compile=false", "name=other"])
    assert (recipe.train.seed, recipe.train.schedule, recipe.train.compile, recipe.name) == (7, "wsd", False, "other")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.sed=7", "train.sed: unknown key (did you mean seed?)"),
        ("train.seed=seven", 'train.seed: should be a valid integer, got "seven"'),
        ("train.seed", "must be KEY=VALUE"),
        ("=7", "must be KEY=VALUE"),
        ("train seed=7", "is not a key"),
        ("train.seed=7\ntrain.tokens=1", "must be KEY=VALUE"),
        ("train.learning_rate=nan", "train.learning_rate: should be a finite number"),
        ("train.seed=true", "train.seed: should be a valid integer"),
        ("train.learning_rate=-1", "greater than 0, got -1"),
        ("train.tokens=most", "should be a valid integer or should be 'chinchilla' or 'all', got \"most\""),
        ("train.betas=[0.9]", "train.betas"),
        ("eval.slices=[[1, 2, 3]]", "eval.slices.0"),
        ("model.n_head=5", "n_embd = 768 does not divide into n_head = 5 heads"),
        ("model=3", "model"),
        ("limits.max_cost_usd=-5", "limits.max_cost_usd"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    assert said in refused(tmp_path, SMALLEST, override)


def test_a_date_for_a_path_is_taken_as_the_text_it_was(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, SMALLEST), ["data.source=1979-05-27"]).data.source == "1979-05-27"


def test_every_problem_gets_its_line_with_file_key_and_nearest_key(tmp_path: Path) -> None:
    text = 'name = "x"\n[data]\nsorce = "x"\n[train]\nlerning_rate = 1\n[machines.8xH100]\nmicro_bach = 2\n'
    said = refused(tmp_path, text).splitlines()
    assert len(said) == 3
    assert all(line.startswith(f"recipe {tmp_path}/small.toml: ") for line in said)
    assert "train.lerning_rate: unknown key (did you mean learning_rate?)" in "\n".join(said)
    assert "data.sorce: unknown key (did you mean source?)" in "\n".join(said)
    assert "machines.8xH100.micro_bach: unknown key (did you mean micro_batch?)" in "\n".join(said)


NASTY = ["a b", "a'b", 'a"b', "a\nb", "a;rm", "$(x)", "`x`", "../x", "-x", "", "Ü", "x" * 65, "a/b"]


@pytest.mark.parametrize("name", NASTY)
def test_nasty_names_are_refused_by_recipe_and_machine_row(tmp_path: Path, name: str) -> None:
    quoted = json.dumps(name)
    assert "name: " in refused(tmp_path, f"name = {quoted}\n[data]\nsource = 'x'\n")
    assert "machines." in refused(tmp_path, SMALLEST + f"[machines.{quoted}]\nmicro_batch = 1\n")


@given(st.text(max_size=70))
def test_no_accepted_name_needs_quoting(name: str) -> None:
    try:
        accepted = build(Recipe, {"name": name, "data": {"source": "x"}}, "test").name
    except UserError:
        return
    assert set(accepted) <= set(string.ascii_lowercase + string.digits + "_.-")
    assert accepted[0] not in "-._"
    assert len(accepted) <= 64


def test_a_source_with_a_newline_is_refused(tmp_path: Path) -> None:
    assert "control character" in refused(tmp_path, 'name = "x"\n[data]\nsource = "a\\nb"\n')


def test_data_needs_a_source_or_something_to_prepare(tmp_path: Path) -> None:
    assert "[data.prepare]" in refused(tmp_path, 'name = "x"\n[data]\norder = "shuffled"\n')


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name = ", "not valid TOML"),
        (b"a = " + b"[" * 200_000, "nested too deeply"),
        (b"\xff\xfe", "not valid TOML"),
        (b"#" * (SIZE_LIMIT_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_recipe(str(path))


def test_an_unknown_recipe_names_the_nearest_and_where_all_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("quikstart", search=[REPOSITORY / "recipes"])
    assert caught.value.hint == "did you mean quickstart? gptctl recipes lists all"


@pytest.mark.parametrize("name", ["", " ", "a\nb", "../../etc/passwd", "no/such.toml"])
def test_odd_recipe_arguments_are_user_errors(name: str) -> None:
    with pytest.raises(UserError):
        load_recipe(name, search=[REPOSITORY / "recipes"])


def test_extends_merges_tables_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, SMALLEST + "[train]\nseed = 1\nbetas = [0.5, 0.6]\n[eval]\nprompts = ['a', 'b']\n", "below.toml")
    above = 'extends = "../below.toml"\nname = "above"\n[train]\nseed = 2\n[eval]\nprompts = ["c"]\n'
    recipe = load_recipe(write(tmp_path, above, "sub/above.toml"))
    assert (recipe.name, recipe.train.seed, recipe.train.betas, recipe.eval.prompts) == ("above", 2, (0.5, 0.6), ("c",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extends = "small.toml"\n', "extends this one again"),
        ('extends = "missing.toml"\n', "does not exist"),
        ("extends = 7\n", "must be the path"),
    ],
)
def test_extends_that_leads_nowhere(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text + SMALLEST)


def test_a_chain_of_extends_ends(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path, f'extends = "{number + 1}.toml"\n', f"{number}.toml")
    write(tmp_path, SMALLEST, "8.toml")
    with pytest.raises(UserError, match="more than 5 recipes"):
        load_recipe(str(tmp_path / "0.toml"))


def test_the_trainer_gets_every_rate_factor(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST), ["train.rate_factors.head=0.5", "train.split_qkv=true"])
    plan = make_plan(recipe, None, machine_type("2xCPU"), None, dataset_tokens=10_000_000, now=0.0)
    config = RunConfig.from_json(train_config(recipe, plan, train_files=["/t"]).to_json())
    assert config.train.rate_factors == RateFactors(head=0.5)
    assert config.train.split_qkv
