"""After the last checkpoint nothing fails a training: it costs the samples or a slice, and a warning says so."""

import dataclasses
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.support.files.training_runs import events, run_to_end, small_config, train_here, verdict, write_config
from trainer.__main__ import main
from trainer.config.task_config import SamplingConfig
from trainer.model.generate import SamplingError
from trainer.model.gpt import GPT
from trainer.training import final_slices, finish
from trainer.training.failures import Expendable, explain
from trainer.training.metrics import Journal
from trainer.training.ranks import World
from trainer.training.start import Run

PROMPTS = ("def ", "class ")


def run_with(folder: Path, **fields: object) -> Path:
    """A run of 5 steps with prompts, slices or another field of the config."""
    return write_config(folder, dataclasses.replace(small_config(folder, steps=5), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [RuntimeError("generator"), torch.OutOfMemoryError("CUDA out of memory"), KeyError("id"), OSError("disk")]
)
def test_samples_that_fail_cost_the_samples_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = run_with(tmp_path / "run", prompts=PROMPTS)

    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(finish, "continuations", broken)
    monkeypatch.setattr(sys, "argv", ["trainer", str(folder)])
    handler = signal.getsignal(signal.SIGTERM)
    main()
    signal.signal(signal.SIGTERM, handler)
    assert verdict(folder)["outcome"] == "finished"
    assert [event["reason"] for event in events(folder, "warning")] == [
        f"no sample for {prompt!r}: {type(error).__name__}: {error}" for prompt in PROMPTS
    ]
    assert len(events(folder, "finished")) == 1
    assert not events(folder, "sampled")


def test_one_prompt_that_fails_leaves_the_others_their_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = finish.continuations

    def fails_on_def(model: GPT, encoding: object, prompt: str, **options: object) -> object:
        if prompt == "def ":
            raise SamplingError("no such id")
        return real(model, encoding, prompt, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(finish, "continuations", fails_on_def)
    folder = run_with(tmp_path / "run", prompts=PROMPTS)
    assert train_here(folder) == "finished"
    assert [event["prompt"] for event in events(folder, "sampled")] == ["class "]
    assert [event["reason"] for event in events(folder, "warning")] == ["no sample for 'def ': no such id"]


def test_a_tokenizer_that_does_not_open_costs_the_samples(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", steps=5)
    config = dataclasses.replace(config, prompts=PROMPTS, data=dataclasses.replace(config.data, tokenizer="nonesuch"))
    folder = write_config(tmp_path / "run", config)
    assert train_here(folder) == "finished"
    (warning,) = events(folder, "warning")
    assert warning["reason"].startswith("no samples: no tokenizer is called 'nonesuch'")


def test_samples_are_drawn_on_the_cpu_wherever_the_model_trains(tmp_path: Path) -> None:
    """On a GPU the logits come back to the CPU, so a generator of the run's device would not fit them."""
    config = dataclasses.replace(small_config(tmp_path / "run"), prompts=PROMPTS)
    elsewhere = World(0, 1, 0, torch.device("meta"))  # no generator can be made there
    config = dataclasses.replace(config, sampling=SamplingConfig(tokens=3, temperature=0.0, top_k=0))
    finish.sample(Run(tmp_path, config, elsewhere, Journal(tmp_path)), GPT(config.model), step=5)
    found = events(tmp_path, "sampled")
    assert [event["prompt"] for event in found] == list(PROMPTS)
    assert all(len(event["text"].removeprefix(event["prompt"])) <= 3 for event in found)
    assert not events(tmp_path, "warning")


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), torch.OutOfMemoryError("full"), OSError("gone")])
def test_a_slice_that_fails_costs_the_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    folder = run_with(tmp_path / "run", slices=((0, 320), (640, 320)))
    real = final_slices.validation_loss

    def fails_at_0(model: GPT, stream: object, start: int, *arguments: object, **options: object) -> object:
        if start == 0:
            raise error
        return real(model, stream, start, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(final_slices, "validation_loss", fails_at_0)
    assert train_here(folder) == "finished"
    (warning,) = events(folder, "warning")
    assert warning["reason"] == f"slice 0+320 was not evaluated: {type(error).__name__}: {error}"
    assert [event["slice"] for event in events(folder, "evaluated")] == [[640, 320]]


def test_a_result_that_fails_on_the_leader_costs_the_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ArithmeticError("no perplexity")

    monkeypatch.setattr(final_slices, "slice_result", broken)
    folder = run_with(tmp_path / "run", slices=((0, 320),))
    assert train_here(folder) == "finished"
    assert "no perplexity" in events(folder, "warning")[0]["reason"]


@pytest.mark.nightly
def test_two_ranks_agree_that_a_slice_does_not_exist(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", slices=((10**9, 320), (0, 320)), prompts=("def ",))
    assert run_to_end(folder, ranks=2) == 0
    assert verdict(folder)["outcome"] == "finished"
    assert len(events(folder, "warning")) == len(events(folder, "evaluated")) == len(events(folder, "sampled")) == 1


def test_tensorboard_that_fails_is_switched_off(tmp_path: Path) -> None:
    class Full:
        def add_scalar(self, *arguments: object) -> None:
            raise OSError("No space left on device")

    journal = Journal(tmp_path)
    journal.tensorboard = Full()
    for step in (1, 2):
        journal.metrics({"step": step, "loss": 1.0})
    assert [event["reason"] for event in events(tmp_path, "warning")] == [
        "TensorBoard is off: OSError: No space left on device"
    ]


def test_an_expendable_block_lets_an_interrupt_pass(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Expendable(Journal(tmp_path).event, 1, "nothing"):
        raise KeyboardInterrupt
    assert not events(tmp_path, "warning")


def test_reasons_name_a_foreign_errors_type() -> None:
    assert explain(SamplingError("top_k must be at least 1")) == "top_k must be at least 1"
    assert explain(KeyError()) == "KeyError: no message"
    assert explain(RuntimeError("Connection closed by peer\nmore")).startswith("lost another rank, killed or frozen: ")
