"""Instruction tuning: what the loss counts, against a mask made by hand in transformers, and the edges of datasets."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.files.examples import docstrings, prepared_rows
from tests.support.files.small_runs import TINY, write_run
from tests.support.files.training_runs import events, losses, small_config, train_here, write_config
from trainer.checkpoints.checkpoint import load_model
from trainer.config.task_config import LoraConfig, TaskConfig
from trainer.contract import DataConfig, RunConfig
from trainer.export import main as export
from trainer.prepare import main as prepare
from trainer.prompt_template import prompt_of
from trainer.tasks.objective import apply_task
from trainer.tasks.validation import example_loss
from trainer.tokens.batches import Share, counted, inputs_and_targets, open_data
from trainer.tokens.example_rows import IGNORED
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream

SHAPE = dataclasses.replace(TINY, context_length=128)
TEMPLATE = "Q: {instruction}\nA: "
INSTRUCT = TaskConfig("instruct", TEMPLATE)
END = 256


def config(folder: Path, data: Path, task: TaskConfig = INSTRUCT, **train: Any) -> RunConfig:
    """A run on prepared examples."""
    plain = small_config(folder, model=SHAPE, **{"steps": 12, "checkpoint_every": 6, "validate_every": 6, **train})
    validation = str(data / "validation.safetensors")
    rows = len(TokenStream.open([Path(validation)]))
    tokens = DataConfig((str(data / "train.safetensors"),), (validation,), validation_tokens=rows, tokenizer="bytes")
    return dataclasses.replace(plain, data=tokens, task=task)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("instruct")
    (folder / "docs.json").write_text(json.dumps(docstrings()))
    prepared_rows(folder / "rows", folder / "docs.json", kind="instruct", length=128, prompt=TEMPLATE)
    return folder / "rows"


def test_the_loss_is_that_of_a_mask_made_by_hand_in_transformers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Only here: transformers takes five seconds of processor to import, in every worker that collects this file.
    from transformers import AutoModelForCausalLM

    checkpoint = write_run(tmp_path / "run", SHAPE)
    assert export([str(checkpoint), "--to", str(tmp_path / "hf")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ours, _ = load_model(checkpoint, torch.device("cpu"))
    apply_task(ours, INSTRUCT)
    stream = TokenStream.open([data / "train.safetensors"], 257)
    some = docstrings()
    nats, tokens = 0.0, 0
    for example in some:
        prompt = [*prompt_of(TEMPLATE, example["instruction"], "").encode()]
        answer = [*example["output"].encode(), END]
        if len(prompt) + len(answer) > 128:
            continue
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = theirs(torch.tensor([prompt + answer]), labels=labels).loss
        nats, tokens = nats + float(loss.detach()) * len(answer), tokens + len(answer)
    rows = 128 * ((len(stream) - 1) // 128)
    found = [example_loss(ours, stream, 0, rows, 128, batch_size=4)]
    held_out = TokenStream.open([data / "validation.safetensors"], 257)
    found.append(example_loss(ours, held_out, 0, len(held_out), 128, batch_size=4))
    assert sum(part.targets for part in found) == tokens
    assert sum(part.nats for part in found) / tokens == pytest.approx(nats / tokens, abs=1e-5)


def test_a_run_learns_the_answers_and_says_what_it_is(data: Path, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "run", config(tmp_path / "run", data))
    assert train_here(folder) == "finished"
    curve = losses(folder)
    assert curve[12] < curve[1] - 0.5
    model, meta = load_model(folder, torch.device("cpu"))
    assert meta["task"]["kind"] == "instruct"
    assert model.objective is not None
    assert [line["step"] for line in events(folder, "validated")] == [6, 12]


def test_the_micro_batch_does_not_change_the_mathematics(data: Path, tmp_path: Path) -> None:
    curves = []
    for size in (2, 8):
        folder = write_config(tmp_path / f"run{size}", config(tmp_path / "run", data, steps=4, micro_batch=size))
        train_here(folder)
        curves.append(losses(folder))
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_the_weights_of_all_ranks_and_micro_batches_add_up(data: Path, tmp_path: Path) -> None:
    rows = open_data(config(tmp_path / "run", data))
    for world, size in ((1, 8), (2, 2), (4, 1)):
        share = Share(size, 8 // (size * world), 0, world)
        weights = []
        for rank in range(world):
            for index in range(share.accumulation):
                targets = rows.micro_batch(3, index, size, rank, world)[1]
                weights.append(rows.weight(3, targets, share) / world)
        assert sum(weights) == pytest.approx(1)


def test_a_batch_is_as_wide_as_its_longest_example() -> None:
    rows = torch.tensor([[5, 6, ~7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [5, ~6, ~7, ~8, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    ids, targets = inputs_and_targets(rows)
    assert ids.shape == (2, 8)
    assert ids[0].tolist()[:4] == [5, 6, 7, 0]
    assert targets[0].tolist() == [IGNORED, 7, *[IGNORED] * 6]
    assert counted(targets) == 4


def test_what_is_too_long_or_empty_is_dropped_and_counted(tmp_path: Path) -> None:
    lines = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "output": " "},
        {"instruction": "c", "output": "d"},
    ]
    lines.append({"instruction": "long", "output": "x" * 500})
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset = prepared_rows(tmp_path / "rows", tmp_path / "x.jsonl", kind="instruct", length=64, prompt=TEMPLATE)
    assert dataset["documents"] == 2
    said = dataset["examples"]
    assert (said["too_long"], said["empty"], said["empty_named"]) == (1, 1, ["x.jsonl, line 2"])
    assert {name: entry["documents"] for name, entry in dataset["files"].items()} == {
        "train.safetensors": 1,
        "validation.safetensors": 1,
    }


@pytest.mark.parametrize(
    ("content", "task", "said"),
    [
        ('[{"instruction": "a"}]', {}, "x.json, example 1: has no output; it has: instruction"),
        ('[{"instruction": "a", "output": ["b"]}]', {}, "output is a list, not text"),
        ("[1]", {}, "example 1: is a int"),
        ("[", {}, "is not JSON"),
        ("", {}, "holds no examples"),
        (
            '[{"instruction": "a", "output": ""}]',
            {},
            "no example is left to train on: 0 are longer than 64 tokens, 1 are",
        ),
        ('[{"instruction": "a", "output": "b"}]', {"prompt": "nothing"}, "task.prompt: must be alpaca"),
    ],
)
def test_bad_examples_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, task: dict[str, str], said: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    request = json.dumps({"kind": "instruct", "length": 64, **task})
    arguments = ["--source", str(tmp_path / "x.json"), "--tokenizer", "bytes", "--to", str(tmp_path / "rows")]
    assert prepare([*arguments, "--task", request]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "rows").exists()


def test_a_line_of_json_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    lines = [{"instruction": "a\u2028b", "output": f"c\x85{number}"} for number in range(3)]
    (tmp_path / "x.jsonl").write_text("\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    dataset = prepared_rows(tmp_path / "rows", tmp_path / "x.jsonl", kind="instruct", length=64, prompt=TEMPLATE)
    assert dataset["documents"] == 3


def test_examples_and_streams_are_not_taken_for_each_other(data: Path, tmp_path: Path) -> None:
    examples = config(tmp_path / "run", data)
    with pytest.raises(DataError, match="holds examples: set"):
        open_data(dataclasses.replace(examples, task=TaskConfig()))
    plain = small_config(tmp_path / "run")
    with pytest.raises(DataError, match="needs examples"):
        open_data(dataclasses.replace(plain, task=INSTRUCT))
    with pytest.raises(DataError, match="the vocabulary has 100 ids"):
        TokenStream.open([data / "train.safetensors"], 100).read(0, 128)


def test_adapters_learn_and_the_rest_stays(data: Path, tmp_path: Path) -> None:
    task = dataclasses.replace(INSTRUCT, lora=LoraConfig(4, 8.0))
    folder = write_config(tmp_path / "run", config(tmp_path / "run", data, task, learning_rate=3e-2))
    assert train_here(folder) == "finished"
    first, last = (load_model(folder / "checkpoints" / f"step-{step:06d}", torch.device("cpu"))[0] for step in (6, 12))
    changed = {
        name for (name, a), (_, b) in zip(first.named_parameters(), last.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }  # fmt: skip
    assert len(changed) == 2 * 4 * 2
    assert all(name.endswith(("lora_a", "lora_b")) for name in changed)
    curve = losses(folder)
    assert curve[12] < curve[1]


def test_a_task_begins_with_the_weights_of_another_model_also_a_tuned_one(data: Path, tmp_path: Path) -> None:
    lora = dataclasses.replace(INSTRUCT, lora=LoraConfig(4, 8.0))
    plain = write_run(tmp_path / "plain", SHAPE)
    first = dataclasses.replace(config(tmp_path / "a", data, lora, learning_rate=3e-2), init_from=str(plain))
    tuned = write_config(tmp_path / "a", first)
    assert train_here(tuned) == "finished"
    again = dataclasses.replace(config(tmp_path / "b", data, lora, steps=1), init_from=str(tuned))
    folder = write_config(tmp_path / "b", again)
    assert train_here(folder) == "finished"
    assert losses(tuned)[1] > losses(folder)[1] + 0.1
    before, _ = load_model(tuned, torch.device("cpu"))
    after, _ = load_model(folder, torch.device("cpu"))
    ids = torch.randint(257, (1, 20))
    assert torch.allclose(before(ids), after(ids), atol=0.05)


def test_alpaca_is_alpaca() -> None:
    assert prompt_of("alpaca", "Do {it}.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo {it}.\n\n### Response:\n"
    )
    assert "provides further context" in prompt_of("alpaca", "a", "b")
    assert "### Input:\nb\n\n### Response:\n" in prompt_of("alpaca", "a", "b")
