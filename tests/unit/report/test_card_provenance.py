"""The card of a descendant, of an import, and what is around the figures: carbon, citation, results, a demo."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli.models.space import write_space
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import UserError
from orchestrator.core.facts.run_facts import DatasetFacts
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.core.states import Outcome
from orchestrator.ledger import Evaluation, RunRecord
from orchestrator.report.card.card import Exported, Wish, model_card, recipe_file
from orchestrator.report.card.checkpoint_meta import CheckpointMeta
from orchestrator.report.card.provenance import eval_results
from orchestrator.report.evaluations import table
from orchestrator.report.summary import Records, collect
from tests.unit.report.test_card import META
from tests.unit.report.test_lineage import FIRST, IMPORT, SECOND, TUNED, A, B
from tests.unit.report.test_report import STAGES, a_mirror

AUTHOR = Wish(author="Ada {L}", links=("Code=https://example.org/it",), repo="ada/model", region="us-east-1")


def card(run: RunRecord, mirror: Path, ancestors: list[RunRecord], wish: Wish = AUTHOR) -> tuple[str, dict[str, Any]]:
    host = HostSpec.from_resolved(run.host_data) if run.host_data else None
    cost = run_cost(STAGES, machine=machine_type(run.machine), tokens=10_000, host=host)
    facts = collect(run, STAGES, cost, mirror, records=Records(ancestors=ancestors))
    exported = Exported(run, CheckpointMeta.from_json(META), DatasetFacts(), ancestors=ancestors)
    page = model_card(exported, facts, wish)
    assert "None" not in page
    front: dict[str, Any] = yaml.safe_load(page.split("---\n")[1])
    return page, front


def test_a_descendant_says_what_it_continued_and_how_to_make_all_of_it_again(tmp_path: Path) -> None:
    page, front = card(SECOND, a_mirror(tmp_path / "run"), [FIRST])
    assert f"continued from {FIRST.id} at step 60: 6,000 tokens of {A}, 4,000 tokens of {B}" in page
    assert "trained from scratch" not in page and "pretrained-from-scratch" not in front["tags"]
    assert f"| Tokens seen before | 6,000 of {A} |" in page and "| Tokens trained on | 4,000 |" in page
    assert front["co2_eq_emissions"]["training_type"] == "fine-tuning"
    assert front["co2_eq_emissions"]["geographical_location"] == "us-east-1"
    assert front["co2_eq_emissions"]["emissions"] > 1, "grams"
    assert f"gptctl run recipe-{FIRST.id}.toml --host cloud --name again-1" in page
    assert "gptctl run recipe.toml --host cloud --resume-from again-1@60" in page
    assert recipe_file(FIRST, SECOND) == f"recipe-{FIRST.id}.toml"


def test_a_tuned_import_names_its_base_model_and_an_import_no_training(tmp_path: Path) -> None:
    page, front = card(TUNED, a_mirror(tmp_path / "run"), [IMPORT])
    assert front["base_model"] == "o/gpt2"
    assert "gptctl import hf://models/o/gpt2@c0 --name again-1" in page
    imported = dataclasses.replace(IMPORT, outcome=Outcome.IMPORTED)
    page, front = card(imported, a_mirror(tmp_path / "other"), [])
    assert front["base_model"] == "o/gpt2" and "co2_eq_emissions" not in front
    assert "## Training data" not in page and "## Cost" not in page
    assert "another program trained" in page


def test_author_links_citation_date_and_how_to_fine_tune(tmp_path: Path) -> None:
    page, _ = card(FIRST, a_mirror(tmp_path / "run"), [])
    assert "By Ada" in page and "[Code](<https://example.org/it>)" in page
    assert "@misc{" in page and "author = {Ada {L}}" in page and "https://huggingface.co/ada/model" in page
    assert "--set model.init_from=hf://models/ada/model" in page
    assert "trained from scratch" in page


def test_a_known_benchmark_becomes_a_result_of_the_hub() -> None:
    scores = {"accuracy": 0.3, "accuracy_norm": 0.3125, "questions": 10042}
    rows = table(
        [Evaluation("r", 100, "choices", name, 1.0, None, scores) for name in ("hellaswag.jsonl", "mine.jsonl")]
    )
    files = eval_results(100, rows, FIRST)
    assert list(files) == [".eval_results/hellaswag.yaml"]
    (entry,) = yaml.safe_load(files[".eval_results/hellaswag.yaml"])
    assert entry["dataset"] == {"id": "Rowan/hellaswag", "task_id": "hellaswag"} and entry["value"] == 31.25
    assert eval_results(50, rows, FIRST) == {}, "of another checkpoint"


@pytest.mark.parametrize("repo", [None, "ada/model"])
def test_the_demo_compiles_and_its_generate_runs_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str | None
) -> None:
    # Only now: torch costs every worker a second.
    import torch

    folder = write_space(tmp_path / "it-space", 'a "quoted"\nname', repo, tmp_path / "it")
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
    assert front.get("models") == ([repo] if repo else None)
    assert (folder / "requirements.txt").read_text().split() == ["gradio>=5", "torch", "transformers"]
    loaded: list[str] = []

    class Loader:
        """Stands for transformers' Auto classes: echoes five more tokens, and notes what it was asked for."""

        eos_token, eos_token_id = "<|endoftext|>", 0
        config = types.SimpleNamespace(n_positions=8)

        @classmethod
        def from_pretrained(cls, name: str) -> Loader:
            loaded.append(name)
            return cls()

        def eval(self) -> Loader:
            return self

        def __call__(self, prompt: str, return_tensors: str) -> Any:
            return types.SimpleNamespace(input_ids=torch.ones(1, 20, dtype=torch.long))

        def generate(self, ids: Any, max_new_tokens: int, **options: Any) -> Any:
            assert ids.shape[1] + max_new_tokens <= 8, "it never exceeds the context"
            assert ("temperature" in options) == options.get("do_sample", False)
            return torch.cat([ids, torch.full((1, max_new_tokens), 5)], dim=1)

        def decode(self, ids: Any, skip_special_tokens: bool) -> str:
            return "".join(str(int(each)) for each in ids)

    stand_in = types.ModuleType("transformers")
    vars(stand_in).update(AutoModelForCausalLM=Loader, AutoTokenizer=Loader, set_seed=lambda seed: None)
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    app = runpy.run_path(str(folder / "app.py"))
    assert loaded == [repo or "../it"] * 2
    assert app["generate"]("def ", tokens=3) == "def 5"
    assert app["generate"]("def ", temperature=0) == "def 5"
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not part of a demo"):
        write_space(folder, "a", repo, tmp_path / "it")
    assert json.loads(json.dumps(front["title"])) == 'a "quoted" name'
