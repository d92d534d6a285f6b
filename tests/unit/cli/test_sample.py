"""`gptctl sample`: what it asks the trainer's program, and what appears on the screen as lines arrive."""

import json
from pathlib import Path

import pytest

from orchestrator.cli.inference.local_checkpoint import folder_named
from orchestrator.cli.inference.sample import SampleRequest, Screen, sample
from orchestrator.core.errors import UserError
from tests.support.files.small_runs import write_run
from trainer import sample as program


def test_the_program_understands_every_option() -> None:
    request = SampleRequest(["-a", "b"], None, 9, 0.5, 3, top_k=4, top_p=0.9, batch=2)
    read = program._parse(request.arguments("FOLDER"))
    assert (read.prompt, read.tokens, read.temperature, read.seed) == (["-a", "b"], 9, 0.5, 3)
    assert (read.top_k, read.top_p, read.batch, read.stream, read.json) == (4, 0.9, 2, True, True)
    assert "--top-k" not in " ".join(SampleRequest([], None, 9, 0.5, 3).arguments("FOLDER"))


def test_a_text_appears_as_it_is_written_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for line in [
        {"prompt": "ab", "piece": "c"},
        {"prompt": "ab", "piece": "d\x1b[2J"},
        {"prompt": "ab", "text": "abcd", "tokens": 2},
        {"prompt": "", "text": "whole", "tokens": 1},
    ]:
        screen.show(line)
    shown = capsys.readouterr().out
    assert shown.startswith("abcd")
    assert shown.endswith("\n\nwhole\n\n")
    assert "\x1b" not in shown
    assert shown.count("abcd") == 1


def test_a_folder_is_a_folder_and_a_path_that_is_none_is_refused(tmp_path: Path) -> None:
    assert folder_named(str(tmp_path)) == tmp_path
    assert folder_named("quickstart-1120") is None
    assert folder_named(None) is None
    with pytest.raises(UserError, match="no such folder"):
        folder_named(str(tmp_path / "none"))


def test_a_folder_with_a_model_writes_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPTCTL_HOME", str(tmp_path / "home"))
    write_run(tmp_path / "model")
    request = SampleRequest(["def "], None, 5, 0.8, 1, batch=2)
    assert sample(str(tmp_path / "model"), request, on_host=False, as_json=True) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["run"] is None
    assert [each["prompt"] for each in value["samples"]] == ["def ", "def "]
    assert all(each["tokens_per_second"] > 0 for each in value["samples"])
