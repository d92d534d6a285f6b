"""A finished run, measured afterwards: what is printed, what is kept, and what is said of a wish that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl

pytestmark = pytest.mark.usefixtures("known_machine")

QUESTION = {"ctx": "def ", "endings": ["main():", "))))", "    ", "]]]]"], "label": 0}


@pytest.mark.nightly
def test_a_finished_run_is_measured_here_and_remembered(
    gptctl: Gptctl, tmp_path: Path, tiny: Callable[..., str]
) -> None:
    assert gptctl("run", tiny(20), "--host", "local", "--yes").returncode == 0
    (tmp_path / "q.jsonl").write_text(json.dumps(QUESTION) + "\n")
    (tmp_path / "empty.jsonl").write_text("")

    done = gptctl("eval", "--slice", "0+100_000_000", "--choices", "q.jsonl")
    assert done.returncode == 0, done.stderr
    header, *rows = (line.split() for line in done.stdout.splitlines())
    assert " ".join(header) == "STEP WHAT LOSS PERPLEXITY BITS/BYTE TOKENS ACC ACC NORM ACC/TOKEN CHANCE QUESTIONS"
    assert [row[1:3] for row in rows] == [["choices", "q.jsonl"], ["slice", "0+100000000"]]
    assert "choices q.jsonl, slice 0+100000000 of its validation data" in done.stderr
    assert f"slice 0+100000000: the data holds only {rows[1][6]} of these tokens" in done.stderr
    assert "nats per token" in done.stderr and "saved: gptctl report" in done.stderr

    again = json.loads(gptctl("eval", "--json").stdout)
    (validated,) = again["evaluations"]
    assert (validated["name"], validated["tokens"]) == ("0+8192", 8192), "what it validated on"

    (run,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    kept = {each["name"]: each for each in run["evaluations"]}
    assert kept.keys() == {"0+100000000", "0+8192", "q.jsonl"}, "the sample of the training is no score"
    assert kept["0+8192"]["loss"] == validated["loss"]
    assert abs(validated["loss"] - run["val_loss"]) < 1e-5, "the very loss that the training saw"

    for arguments, message in {
        ("--slice", "0+16"): "gptctl: slice 0 +16 of ",
        ("--choices", "empty.jsonl"): "empty.jsonl: no questions found",
        ("--choices", "absent.jsonl"): "no such file: absent.jsonl",
    }.items():
        refused = gptctl("eval", *arguments)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr
        assert "gptctl check" not in refused.stderr, "nothing is wrong with the Python that was used"
