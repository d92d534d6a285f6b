"""Attention weights against transformers, and the program that prints them."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.files.small_runs import TINY, write_run
from trainer.checkpoints.checkpoint import load_model
from trainer.export import main as export
from trainer.inference.attention_map import attention_weights, main


def test_the_weights_are_those_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Only here: transformers takes five seconds of processor to import, in every worker that collects this file.
    from transformers import AutoModelForCausalLM

    checkpoint = write_run(tmp_path / "run", replace(TINY, qkv_bias=True))
    assert export([str(checkpoint), "--to", str(tmp_path / "hf")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    ids = [*b"def f(x):"]
    expected = torch.stack([layer[0] for layer in theirs(torch.tensor([ids]), output_attentions=True).attentions])
    ours, _ = load_model(checkpoint, torch.device("cpu"))
    assert torch.allclose(attention_weights(ours, ids), expected, atol=1e-6)
    capsys.readouterr()


def test_the_program_prints_the_beginning_of_a_long_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--prompt", "x" * 40]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (len(line["tokens"]), line["left_out"], line["layers"], line["heads"]) == (32, 8, 2, 2)
    cells = np.frombuffer(base64.b64decode(line["weights"]), np.uint8).reshape(2, 2, 32, 32)
    assert (abs(cells.astype(int).sum(-1) - 255) <= 16).all()
    assert (np.triu(cells, 1) == 0).all()


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--prompt", "x"]) == 1
    assert capsys.readouterr().err.startswith("inference.attention_map: ")
