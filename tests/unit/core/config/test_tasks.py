"""[task] of a recipe: what it means for the trainer, how far it trains, and what contradicts itself."""

import json
from pathlib import Path

import pytest

from orchestrator.core.config.recipe import Recipe, load_recipe
from orchestrator.core.errors import UserError
from orchestrator.report.card.provenance import sampling
from trainer.config.task_config import LoraConfig, SamplingConfig, TaskConfig

HEAD = 'name = "x"\n[model]\ncontext_length = 64\n[data.prepare]\nsource = "x.json"\ntokenizer = "gpt2"\n'


def loaded(folder: Path, task: str, more: str = "") -> Recipe:
    (folder / "x.toml").write_text(f"{HEAD}{more}\n[task]\n{task}\n")
    return load_recipe(str(folder / "x.toml"))


def test_instructions_with_adapters(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, 'kind = "instruct"\nexamples = 1000\n[task.lora]\nrank = 4\ntargets = ["qkv"]')
    assert recipe.task.config() == TaskConfig("instruct", lora=LoraConfig(4, 16.0, ("qkv",)))
    assert recipe.train.tokens == 64_000
    request = json.loads(recipe.task.request(64, None) or "")
    assert request == {"kind": "instruct", "length": 64, "prompt": "alpaca"}
    assert Recipe.from_resolved(json.loads(json.dumps(recipe.resolved()))) == recipe


def test_classes(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, 'kind = "classify"\nlabels = ["ham", "spam"]\ntext_column = "body"')
    request = json.loads(recipe.task.request(64, 500) or "")
    assert (request["labels"], request["text_column"], request["examples"]) == (["ham", "spam"], "body", 500)


def test_samples_are_drawn_as_the_recipe_says(tmp_path: Path) -> None:
    asked = '[eval]\nprompts = ["a"]\nsample_tokens = 9\ntemperature = 0.5\ntop_k = 0\ntop_p = 0.9\n'
    recipe = loaded(tmp_path, "", asked)
    assert recipe.eval.sampling() == SamplingConfig(9, 0.5, 0, 0.9)
    assert sampling(recipe.resolved()) == "9 tokens after the prompt, top-p 0.9, temperature 0.5"
    usual = loaded(tmp_path, "", '[eval]\nprompts = ["a", "b"]\n')
    assert usual.eval.sampling() == SamplingConfig()
    assert sampling(usual.resolved()) == "64 tokens after each of 2 prompts, top-k 50, temperature 1"
    assert sampling({"eval": {"prompts": ["a"]}}) == "64 tokens after the prompt, top-k 50, temperature 1"


def test_without_a_task_nothing_changes(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, "")
    assert recipe.task.request(64, None) is None
    assert recipe.task.config() == TaskConfig()
    assert recipe.train.tokens == "chinchilla"


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ('kind = "classify"', "", "needs labels"),
        ('kind = "classify"\nlabels = ["a", "a"]', "", "needs labels, at least two different ones"),
        ('kind = "instruct"\nlabels = ["a", "b"]', "", 'labels are for kind = "classify"'),
        ('kind = "instruct"\nprompt = "Hello"', "", "prompt must be `alpaca`"),
        ('kind = "instrct"', "", "task.kind"),
        ("examples = 5", "", 'lora and examples need kind = "instruct"'),
        ('kind = "instruct"\n[task.lora]\ntargets = ["q_proj"]', "", "task.lora.targets"),
        ('kind = "instruct"', "[eval]\nslices = [[0, 5]]", "eval.slices measure streams"),
        ('kind = "classify"\nlabels = ["a", "b"]', '[eval]\nprompts = ["x"]', "a classifier writes no text"),
        ("", "[eval]\ntop_p = 0.0", "eval.top_p"),
        ("", "[eval]\nsample_tokens = 0", "eval.sample_tokens"),
        ('kind = "instruct"\n[task.lora]\nrank = 4', "[train]\nzero_stage = 1", "train.zero_stage must be 0 with"),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path: Path, task: str, more: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, task, more)
    assert said in caught.value.message
