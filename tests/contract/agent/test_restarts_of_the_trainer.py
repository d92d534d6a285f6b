"""The real trainer under the real agent dies of one cause or another, starts again within its bound, and leaves the
losses of an unbroken run, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.files.repository import REPOSITORY
from tests.support.files.training_runs import losses, new_run, run_to_end, small_config
from tests.support.machines.agent_box import Box

pytestmark = pytest.mark.nightly

STEPS, EVERY, BOUND = 160, 40, 3
AFTER = EVERY + 15
"""A step after the first checkpoint and before the second."""
OPTIONS = {"steps": STEPS, "checkpoint_every": EVERY, "validate_every": EVERY}
CUDA_ERROR = """
import os, torch
steps, backward = [0], torch.Tensor.backward
def failing(*arguments, **keywords):
    steps[0] += 1
    if steps[0] == {at} and not os.path.exists({mark!r}):
        open({mark!r}, "w").close()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return backward(*arguments, **keywords)
torch.Tensor.backward = failing
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = new_run(tmp_path_factory.mktemp("unbroken") / "run", **OPTIONS)
    assert run_to_end(folder) == 0
    return losses(folder)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


def killed(box: Box) -> None:
    box.until_steps(AFTER)
    os.kill(box.ranks()[0], signal.SIGKILL)


def cuda_error(box: Box) -> None:
    """Planted before the start."""


@pytest.mark.parametrize(
    ("cause", "words"),
    [(killed, "killed by SIGKILL"), (cuda_error, "CUDA error: an illegal memory access")],
)
def test_the_losses_are_those_of_an_unbroken_run(
    box: Box, tmp_path: Path, unbroken: dict[int, float], cause: Callable[[Box], None], words: str
) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    if cause is cuda_error:
        text = CUDA_ERROR.format(at=2 * AFTER, mark=str(tmp_path / "mark"))  # two micro-batches in a step
        (planted / "sitecustomize.py").write_text(text)
    config = json.loads(small_config(tmp_path / "run", **OPTIONS).to_json())
    request = box.train_request("r-1", spec_ranks=1, spec_restarts=BOUND, spec_pythonpath=f"{planted}:{REPOSITORY}")
    request["spec"]["config"] = json.dumps(config)
    box.call("start", **request)
    cause(box)
    ended = box.wait()
    assert ended["outcome"] == "finished", ended
    assert [each["number"] for each in ended["deaths"]] == [1] and words in ended["deaths"][0]["reason"]
    assert box.starts() == 2
    assert losses(box.root / "runs" / "r-1") == unbroken
