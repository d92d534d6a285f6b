"""The model card beyond what a story trains: GPUs, money, a simulated machine, absent figures, what may not be told."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.facts.run_facts import DatasetFacts
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.ledger import Evaluation, RunRecord
from orchestrator.report.card.card import Exported, Wish, model_card
from orchestrator.report.card.checkpoint_meta import CheckpointMeta
from orchestrator.report.data_source import shown_source
from orchestrator.report.evaluations import table
from orchestrator.report.redaction import shown_recipe
from orchestrator.report.summary import Records, collect
from tests.unit.report.test_report import HOSTILE, STAGES, a_mirror, a_run, metric
from trainer.contract import ModelConfig

REFERENCE = [50_000_000, 19_660_800]
GPT2 = ModelConfig(vocab_size=50257, context_length=1024, n_layer=12, n_head=12, n_embd=768)
META = {
    "step": 100, "total_steps": 100, "tokens": 10_000, "loss": 4.0, "val_loss": 4.4, "tokenizer": "gpt2",
    "model": dataclasses.asdict(GPT2),
}  # fmt: skip


def evaluated(name: str, *, loss: float = 3.4, step: int = 100) -> Evaluation:
    start, _, tokens = name.rpartition(":")[2].partition("+")
    return Evaluation("r", step, "slice", name, 1.0, loss, {"slice": [int(start), int(tokens)]})


def card(
    run: RunRecord, mirror: Path, *found: Evaluation, meta: dict[str, Any] | None = None, wish: Wish | None = None
) -> tuple[str, dict[str, str]]:
    """The page, and its rows. No page may hold a blank that somebody forgot."""
    host = HostSpec.from_resolved(run.host_data) if run.host_data else None
    cost = run_cost(STAGES, machine=machine_type(run.machine), tokens=10_000, host=host)
    facts = collect(run, STAGES, cost, mirror, records=Records(found))
    exported = Exported(run, CheckpointMeta.from_json(meta or META), DatasetFacts(), table(found))
    page = model_card(exported, facts, wish or Wish())
    assert not re.search(r"TODO|\bNone\b|\bnan\b|undefined|^\| [^|]+ \| *\|$|\u2014", page, re.MULTILINE), page
    yaml.safe_load(page.split("---\n")[1])
    return page, dict(re.findall(r"(?m)^\| ([^|]+) \| ([^|]*) \|$", page))


def test_a_rented_gpu_machine_has_its_speed_its_price_and_its_energy(tmp_path: Path) -> None:
    mirror = a_mirror(tmp_path / "run")
    (mirror / "metrics.jsonl").write_text("".join(metric(step, mfu=0.41) for step in range(10, 101, 10)))
    page, rows = card(a_run(), mirror)
    hours = 7860 / 3600
    assert rows["Machine"] == "8xA100-40GB (8 x A100-SXM4-40GB)"
    assert rows["MFU"] == "41.0% (median)"
    assert rows["Cost"] == f"${hours * 15.92:.2f} before tax, at $15.92 per hour"
    assert rows["GPU hours"] == f"{8 * hours:.2f}"
    assert rows["Energy"] == f"at most {8 * hours * 0.4:.2f} kWh: 8 x 400 W, the GPU's limit, for the whole time"
    assert rows["CO2e"].endswith("kg per kWh (assumed)")
    assert rows["Training time"] == "2h 01m"
    assert "simulated" not in page


def test_what_the_host_states_is_not_called_assumed(tmp_path: Path) -> None:
    box = HostSpec(
        name="box", provider="ssh", machine="8xA100-40GB", address="b", board_power_w=300, grid_kg_co2e_per_kwh=0.1
    )
    _, rows = card(a_run(host_data=box.resolved()), a_mirror(tmp_path / "run"))
    assert "8 x 300 W, as stated for the host, for" in rows["Energy"]
    assert rows["CO2e"].endswith("0.100 kg per kWh")


def test_a_simulated_machine_is_said_to_be_one(tmp_path: Path) -> None:
    page, rows = card(a_run(machine="8xH100-simulated"), a_mirror(tmp_path / "run"))
    assert "**The machine was simulated.**" in page
    assert rows["Machine"] == "8xH100-simulated: simulated, computed on 2xCPU"
    assert not rows.keys() & {"MFU", "Cost", "GPU hours", "Energy", "CO2e"}
    assert "simulated-machine" in yaml.safe_load(page.split("---\n")[1])["tags"]


def test_what_nobody_measured_has_no_row(tmp_path: Path) -> None:
    """A run of which neither metrics nor losses came here, with a bare checkpoint."""
    (tmp_path / "run").mkdir()
    bare = {"step": 1, "model": META["model"]}
    page, rows = card(a_run(plan=None), tmp_path / "run", meta=bare)
    assert not rows.keys() & {"Tokens per second", "MFU", "Peak memory", "Micro-batch", "Cost", "Training batch"}
    assert "## Results" not in page and "## Samples" not in page and "loss.png" not in page


@pytest.mark.parametrize(
    ("name", "changes", "anchored"),
    [
        ("50000000+19660800", {}, True),
        ("50000000+19660801", {}, False),
        ("other.safetensors:50000000+19660800", {}, False),
        ("50000000+19660800", {"tokenizer": "bytes"}, False),
        ("50000000+19660800", {"model": {**META["model"], "context_length": 512}}, False),
    ],
)
def test_the_anchor_stands_beside_the_reference_slice_only(
    tmp_path: Path, name: str, changes: dict[str, Any], anchored: bool
) -> None:
    old = evaluated("0+9", loss=9.9, step=50)
    page, rows = card(a_run(), a_mirror(tmp_path / "run"), old, evaluated(name), meta={**META, **changes})
    assert ("3.4997" in page) == anchored
    assert "3.4000" in rows.values()
    assert "9.9000" not in page, "of another checkpoint"
    assert ("other.safetensors, tokens 50,000,000 to 69,660,800" in rows) == ("other" in name)


def test_a_run_that_validates_on_the_reference_slice_has_the_anchor_too(tmp_path: Path) -> None:
    run = a_run()
    start, tokens = REFERENCE
    data = {**run.recipe_data["data"], "validation": {"start_token": start, "tokens": tokens}}
    page, rows = card(dataclasses.replace(run, recipe_data={**run.recipe_data, "data": data}), a_mirror(tmp_path / "r"))
    assert rows["Validation, 19,660,800 tokens"] == "4.4000"
    assert page.count("3.4997") == 1


def test_multiple_choice_has_its_own_table(tmp_path: Path) -> None:
    shares = {"questions": 1000, "accuracy": 0.291, "accuracy_norm": 0.305, "chance": 0.25}
    page, _ = card(a_run(), a_mirror(tmp_path / "run"), Evaluation("r", 100, "choices", "hellaswag", 1.0, None, shares))
    assert "| hellaswag | 1,000 | 29.1% | 30.5% | 25.0% |" in page


def test_a_strangers_words_stay_words(tmp_path: Path) -> None:
    run = a_run()
    data = {**run.recipe_data["data"], "source": f"hf://me/{HOSTILE}"}
    hostile = dataclasses.replace(run, recipe_data={**run.recipe_data, "description": HOSTILE, "data": data})
    choices = Evaluation("r", 100, "choices", HOSTILE, 1.0, None, {"questions": 1, "accuracy": 0.5})
    page, _ = card(hostile, a_mirror(tmp_path / "run"), choices, wish=Wish(chart="loss.png"))
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", page)
    assert "\x1b" not in page and "\u202e" not in page
    assert "<script>" not in outside.split("---\n", 2)[2]
    assert outside.count("\n# ") == 1
    assert "![Loss over the steps](loss.png)" in page


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/ann/thesis/corpus.txt", "corpus.txt"),
        ("~/thesis", "thesis"),
        ("file:///home/ann/thesis/tokens.bin", "tokens.bin"),
        ("https://ann:secret@a.example/t.bin?X-Amz-Signature=abc#x", "https://a.example/t.bin"),
        ("hf://me/tokens@main/part-?.parquet", "hf://me/tokens@main/part-?.parquet"),
        ("s3://bucket/tokens", "s3://bucket/tokens"),
        ("python-stdlib", "python-stdlib"),
    ],
)
def test_neither_folders_nor_keys_are_told(source: str, shown: str) -> None:
    assert shown_source(source) == shown
    resolved = {"name": "r", "data": {"source": source, "prepare": {"source": source, "column": "text"}}}
    text = shown_recipe(resolved)
    data = tomllib.loads(text)["data"]
    assert (data["source"], data["prepare"]["source"]) == (shown, shown)
    assert ("--set data.prepare.source=PATH" in text) == (shown != source)
    assert resolved["data"] == {"source": source, "prepare": {"source": source, "column": "text"}}


def test_what_is_no_gpt2_and_how_it_was_trained_is_said(tmp_path: Path) -> None:
    modded = dataclasses.replace(GPT2, rope=True, qk_norm=True, activation="relu2", value_residual=True)
    meta = {**META, "model": dataclasses.asdict(modded)}
    run = a_run()
    train = {
        **run.recipe_data["train"],
        "optimizer": "muon",
        "split_qkv": True,
        "stages": [[0.1, 24, 1024], [0.5, 384, 256]],
        "rate_factors": {"head": 0.5, "qkv": 1.0},
    }
    shaped = dataclasses.replace(run, recipe_data={**run.recipe_data, "train": train})
    _, rows = card(shaped, a_mirror(tmp_path / "run"), meta=meta)
    assert rows["Architecture"] == (
        "like GPT-2: pre-LayerNorm blocks, rotary positions, ReLU squared, causal attention, QK-norm, value residuals"
    )
    assert rows["Before that"] == "until 10% of the steps 24 of 1,024; until 50% 384 of 256"
    assert rows["Optimizer"].startswith("muon, query, key and value apart, betas")
    assert "(head x 0.5)" in rows["Learning rate"]


@pytest.mark.parametrize(
    ("task", "form", "library", "pipeline", "said"),
    [
        ("pretrain", "hf", "transformers", "text-generation", "It was not trained to\nfollow instructions"),
        ("instruct", "hf", "transformers", "text-generation", "### Instruction:\\nName three colours."),
        ("instruct", "adapters", "peft", "text-generation", "It answers single instructions"),
        ("classify", "hf", "transformers", "text-classification", "It names one of\nham, spam for every text"),
        ("classify", "adapters", "peft", "text-classification", "trained to write"),
        ("classify", "safetensors", None, None, "It names one of"),
    ],
)
def test_a_card_says_what_its_task_is_and_never_what_another_ones_is(
    tmp_path: Path, task: str, form: str, library: str | None, pipeline: str | None, said: str
) -> None:
    run = a_run()
    table_ = {"kind": task, "labels": ["ham", "spam"] if task == "classify" else []}
    run = dataclasses.replace(run, recipe_data={**run.recipe_data, "task": table_, "eval": {}})
    meta = {**META, "task": table_, "accuracy": 0.9 if task == "classify" else None}
    page, _ = card(run, a_mirror(tmp_path / "run"), meta=meta, wish=Wish(format=form))
    front = yaml.safe_load(page.split("---\n")[1])
    assert (front.get("library_name"), front.get("pipeline_tag")) == (library, pipeline)
    assert said in page
    assert ("It continues text" in page) == (task == "pretrain")
    assert ("GPT2ForSequenceClassification" in page) == (task == "classify" and form == "hf")
    assert ("GPT2LMHeadModel" in page) == (task != "classify" and form == "hf")
    (result,) = front["model-index"][0]["results"]
    accuracies = [each["value"] for each in result["metrics"] if each["type"] == "accuracy"]
    assert accuracies == ([0.9] if task == "classify" else [])
    assert result["task"]["type"] == ("text-classification" if task == "classify" else "text-generation")


def test_experts_and_low_rank_tables_are_in_the_card(tmp_path: Path) -> None:
    shape = dataclasses.replace(GPT2, experts=6, active_experts=2, embedding_rank=64, low_rank="input")
    _, rows = card(a_run(), a_mirror(tmp_path / "run"), meta={**META, "model": dataclasses.asdict(shape)})
    assert rows["Experts"].startswith("2 of 6 for each token")
    assert rows["Tables over the vocabulary"] == "products through 64 columns: the input's"
