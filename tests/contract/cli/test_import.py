"""`gptctl import` from the Hub and from folders, with the real program in a process of its own; no torch is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from orchestrator.core.errors import UserError
from orchestrator.core.facts.origin import IMPORTED
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import Ledger
from orchestrator.runs.origin.imports import ImportRequest, import_model
from tests.support.clouds.file_server import Hub

WIDTH, ROWS = 16, 257
CONFIG = {"model_type": "gpt2", "n_head": 2, "tie_word_embeddings": True}


def gpt2_file() -> bytes:
    """The weights of a tied GPT-2 with one block, under Hugging Face's names."""
    draw = np.random.default_rng(5)
    shapes = {
        "wte.weight": (ROWS, WIDTH), "wpe.weight": (8, WIDTH), "ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,),
        "h.0.ln_1.weight": (WIDTH,), "h.0.ln_1.bias": (WIDTH,), "h.0.ln_2.weight": (WIDTH,), "h.0.ln_2.bias": (WIDTH,),
        "h.0.attn.c_attn.weight": (WIDTH, 3 * WIDTH), "h.0.attn.c_attn.bias": (3 * WIDTH,),
        "h.0.attn.c_proj.weight": (WIDTH, WIDTH), "h.0.attn.c_proj.bias": (WIDTH,),
        "h.0.mlp.c_fc.weight": (WIDTH, 4 * WIDTH), "h.0.mlp.c_fc.bias": (4 * WIDTH,),
        "h.0.mlp.c_proj.weight": (4 * WIDTH, WIDTH), "h.0.mlp.c_proj.bias": (WIDTH,),
    }  # fmt: skip
    return save({name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "home", time.time) as ledger:
        yield ledger


def bring(ledger: Ledger, source: str, name: str | None = None) -> str:
    run, _ = import_model(ledger, ImportRequest(source, name), lambda text: None, lambda moved: None)
    return run.id


def test_a_model_of_the_hub_becomes_a_run_that_never_cost_anything(hub: Hub, ledger: Ledger) -> None:
    weights = gpt2_file()
    files = {"model.safetensors": weights, "config.json": json.dumps(CONFIG).encode(), "README.md": b"#"}
    commit = hub.publish("openai/tiny", {**files, "pytorch_model.bin": b"never asked for"}, kind="models")
    run = ledger.run(bring(ledger, "hf://models/openai/tiny", "gpt2"))
    assert (run.state, run.outcome, run.recipe, run.name) == (State.ENDED, Outcome.IMPORTED, "imported", "gpt2")
    origin = run.facts.origin
    assert origin is not None and (origin.how, origin.base_model) == (IMPORTED, "openai/tiny")
    assert origin.place == f"hf://models/openai/tiny@{commit}"
    assert origin.layout == "Hugging Face GPT-2" and list(origin.files) == ["model.safetensors"]
    folder = ledger.home / "runs" / run.id / "checkpoints"
    assert (folder / "best").resolve() == (folder / "latest").resolve() == folder / "step-000000"
    listed = json.loads((folder / "best" / "MANIFEST.json").read_text())["files"]
    assert origin.sha256 == listed["model.safetensors"]["sha256"]
    assert run.recipe_data["model"]["n_embd"] == WIDTH and run.recipe_data["data"]["tokenizer"] == "bytes"
    assert not any("bin" in path or "README" in path for _, path, _ in hub.storage.asked)
    assert ledger.spent_by_run() == [] and ledger.spend_since(0.0) == 0.0
    assert ledger.find_run("gpt2").id == run.id


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://models/me/broken", "^hf://models/me/broken: tensor h.0.mlp.c_fc.bias is missing"),
        ("hf://models/me/empty", "has no weights; it has: README.md"),
        ("nowhere/at/all", "does not exist"),
    ],
)
def test_a_refused_import_leaves_nothing(hub: Hub, ledger: Ledger, source: str, said: str) -> None:
    broken = gpt2_file().replace(b"h.0.mlp.c_fc.bias", b"h.0.mlp.c_fc.xxxx")
    described = json.dumps(CONFIG).encode()
    hub.publish("me/broken", {"model.safetensors": broken, "config.json": described}, kind="models")
    hub.publish("me/empty", {"README.md": b"#"}, kind="models")
    with pytest.raises(UserError, match=said):
        bring(ledger, source)
    assert ledger.runs() == []
    assert not list((ledger.home / "runs").glob("*"))
