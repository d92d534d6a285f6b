"""Classification: a real small set, its accuracy, the head that transformers loads, and classes that are not there."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.files.examples import prepared_rows, sources
from tests.support.files.small_runs import TINY
from tests.support.files.training_runs import events, small_config, train_here, write_config
from trainer.checkpoints.checkpoint import load_model
from trainer.config.task_config import LoraConfig, TaskConfig
from trainer.contract import DataConfig, RunConfig
from trainer.export import main as export
from trainer.prepare import main as prepare
from trainer.tasks.objective import class_logits
from trainer.tokens.token_stream import TokenStream

SHAPE = dataclasses.replace(TINY, context_length=96)
LABELS = ("code", "prose")
TASK = TaskConfig("classify", labels=LABELS)
REQUEST: dict[str, Any] = {"kind": "classify", "labels": LABELS, "length": 96}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of code and of English, in the form of the SMS Spam Collection: label, tab, text, no line of names."""
    folder = tmp_path_factory.mktemp("classify")
    (folder / "lines.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in sources()))
    prepared_rows(folder / "rows", folder / "lines.tsv", **REQUEST)
    return folder / "rows"


def config(folder: Path, data: Path, task: TaskConfig = TASK, **train: Any) -> RunConfig:
    settings = {"steps": 60, "checkpoint_every": 60, "validate_every": 30, "global_batch": 16, "micro_batch": 16}
    plain = small_config(folder, model=SHAPE, **{**settings, "learning_rate": 2e-3, **train})
    validation = str(data / "validation.safetensors")
    count = len(TokenStream.open([Path(validation)]))
    files = DataConfig(
        (str(data / "train.safetensors"),), (validation,), order="shuffled", validation_tokens=count, tokenizer="bytes"
    )
    return dataclasses.replace(plain, data=files, task=task)


@pytest.mark.parametrize("lora", [None, LoraConfig(4, 8.0)])
def test_a_run_tells_code_from_prose(
    data: Path, tmp_path: Path, lora: LoraConfig | None, capsys: pytest.CaptureFixture[str]
) -> None:
    # Only here: transformers takes five seconds of processor to import, in every worker that collects this file.
    from transformers import AutoModelForSequenceClassification

    rate = 2e-3 if lora is None else 2e-2
    task = dataclasses.replace(TASK, lora=lora)
    folder = write_config(tmp_path / "run", config(tmp_path / "run", data, task, learning_rate=rate))
    assert train_here(folder) == "finished"
    last = events(folder, "validated")[-1]
    assert last["accuracy"] >= 0.8
    assert last["val_loss"] < 0.6
    assert export([str(folder), "--to", str(tmp_path / "hf")]) == 0
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.id2label == dict(enumerate(LABELS))
    ours, _ = load_model(folder, torch.device("cpu"))
    for text in (b"self.x = parser.parse_args()", b"The functions in this module compute an average."):
        ids = torch.tensor([[*text]])
        logits = class_logits(ours, ours.hidden(ids)[:, -1])
        assert torch.allclose(logits, theirs(ids).logits, atol=1e-5)


def refused(folder: Path, content: str, capsys: pytest.CaptureFixture[str], name: str = "x.csv", **more: Any) -> str:
    (folder / name).write_text(content)
    arguments = ["--source", str(folder / name), "--tokenizer", "bytes", "--to", str(folder / "rows")]
    assert prepare([*arguments, "--task", json.dumps({**REQUEST, **more})]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\nx = 1,code\n", "the class 'prose' would never be seen in training: it has no example"),
        (
            "text,label\nx = 1,code\nhello,poem\n",
            "x.csv, line 3: its class 'poem' is not one of task.labels: code, prose",
        ),
        ("text,kind,more\nx,code,1\n", "its first line has no text and label; it has: text, kind, more"),
        ("text,label\nx,code,1\n", "line 2 has 3 columns, not 2"),
    ],
)
def test_classes_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    assert said in refused(tmp_path, content, capsys)


def test_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [*sources(60), ("code", 'a "quoted, text'), ("prose", "")]
    forms = {
        "bare.tsv": "".join(f"{label}\t{text}\n" for label, text in rows),
        "SMSSpamCollection": "".join(f"{label}\t{text}\n" for label, text in rows),
        "list.json": json.dumps([{"label": label, "text": text} for label, text in rows]),
        "lines.jsonl": "\n".join(json.dumps({"label": label, "text": text}) for label, text in rows),
    }
    found = []
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        dataset = prepared_rows(tmp_path / f"{name}-rows", tmp_path / name, **REQUEST)
        assert dataset["examples"]["empty"] == 1
        assert sum(dataset["examples"]["labels"].values()) + dataset["split"]["held_out"] == dataset["documents"]
        found.append((dataset["source_sha256"], [entry["sha256"] for entry in dataset["files"].values()]))
    assert len({str(each) for each in found}) == 1
