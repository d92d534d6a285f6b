"""Packets dropped without a word while data goes out and while checkpoints come home: noticed within 10 s, and the next
`resume` goes on at the byte that was reached."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import digests, events, losses, newest_run, starts, wait_until
from tests.support.clock.waiting import PATIENCE
from tests.support.files.canary import below
from tests.support.files.recipes import SMALL, write_tokens
from tests.support.machines import known_interpreter
from tests.support.machines.sshd import Sshd

NOTICED_WITHIN_S = 10
LEAVING_S = 15
"""For gptctl to say so and end, on a loaded machine."""
DATASET_BYTES = 400_000_000


def begin(home: Path, recipe: str, box: Sshd) -> subprocess.Popen[str]:
    """gptctl run in the background."""
    inventory = home.parent / "inventory.toml"
    inventory.write_text(box.inventory_entry(extra=f'python = "{sys.executable}"\n'))
    argv = gptctl_command("run", recipe, "--host", "box", "--inventory", str(inventory), "--yes")
    with (home.parent / "background.log").open("a") as log:
        return subprocess.Popen(argv, stdout=log, stderr=log, text=True, cwd=home.parent)


def notice(process: subprocess.Popen[str]) -> None:
    """It gives up by itself, in time, with exit code 4."""
    cut_at = time.monotonic()
    assert process.wait(240) == 4
    assert time.monotonic() - cut_at < PATIENCE * (NOTICED_WITHIN_S + LEAVING_S)


@pytest.mark.nightly
def test_cut_while_data_goes_out(gptctl: Gptctl, gptctl_home: Path, box: Sshd, tmp_path: Path) -> None:
    data = tmp_path / "corpus" / "train.bin"
    write_tokens(data, DATASET_BYTES)
    source = tmp_path / "plain.toml"
    source.write_text(PLAIN.format(source=data.parent))

    process = begin(gptctl_home, str(source), box)
    far = box.home / ".gptctl" / "data"
    wait_until(lambda: any(path.stat().st_size > 1_000_000 for path in below(far)), 60, 0.005)
    box.cut()
    notice(process)
    run_id = newest_run(gptctl_home)
    assert run_id is not None and "stage_failed:sync" in events(gptctl_home, run_id)
    box.heal()
    assert gptctl("resume", run_id).returncode == 0
    (there,) = far.rglob("train.bin")
    assert hashlib.sha256(there.read_bytes()).digest() == hashlib.sha256(data.read_bytes()).digest()
    assert starts(box.home / ".gptctl", run_id) == 1


PLAIN = (
    f'name = "plain"{SMALL}'
    + """
[data]
source = "{source}"
tokenizer = "bytes"
order = "shuffled"
[data.validation]
tokens = 2_048
[train]
tokens = 5_120
global_batch = 8
precision = "fp32"
[machines.2xCPU]
micro_batch = 4
"""
)


@pytest.mark.nightly
def test_cut_while_checkpoints_come_home(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], box: Sshd
) -> None:
    known_interpreter.plant(box.home / ".gptctl")
    process = begin(gptctl_home, tiny(40), box)
    run_id = wait_until(lambda: newest_run(gptctl_home), 30)
    wait_until(lambda: "stage_started:fetch" in events(gptctl_home, run_id), 90, 0.005)
    box.cut()
    notice(process)
    box.heal()
    assert gptctl("resume", run_id).returncode == 0
    far = box.home / ".gptctl" / "runs" / run_id
    assert losses(gptctl_home / "runs" / run_id) == losses(far)
    latest = gptctl_home / "runs" / run_id / "checkpoints" / "latest"
    assert digests(latest) == digests(far / "checkpoints" / "latest")
