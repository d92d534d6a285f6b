"""Two nodes, each with a run folder that the other does not see: the losses of one node, and one answer to everything.

Loopback alone, one torchrun per node; the agent's side is in tests/contract/agent/test_cluster.py."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.clock.waiting import until
from tests.support.files.repository import REPOSITORY
from tests.support.files.training_runs import (
    DEADLINE_S,
    events,
    last_step,
    losses,
    new_run,
    run_to_end,
    verdict,
)
from tests.support.machines.sshd import descendants
from trainer.evaluate import main as evaluate
from trainer.run_files import ATTEMPT, CHECKPOINTS, EVENTS, LEADS, METRICS

STEPS = 150

pytestmark = pytest.mark.nightly


@contextmanager
def nodes(
    folders: list[Path], head: int = 0, words: Callable[[Path], list[str]] = lambda folder: ["trainer", str(folder)]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A torchrun of one rank for each folder; `head` leads, whatever number torchrun gives it. words: what each starts
    after -m."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = []
    try:
        for node, folder in enumerate(folders):
            argv = [
                sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(folders)}", f"--node-rank={node}",
                "--nproc-per-node=1", "--rdzv-backend=static", "--master-addr=127.0.0.1", f"--master-port={port}",
                "-m", *words(folder),
            ]  # fmt: skip
            own = {LEADS: "1" if node == head else "0", ATTEMPT: "1", "GLOO_SOCKET_IFNAME": "lo"}
            environment = {**os.environ, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
            with (folder / "train.log").open("ab") as log:
                started.append(subprocess.Popen(argv, stdout=log, stderr=log, env=environment, start_new_session=True))
        yield started
    finally:
        for process in started:
            for pid in [process.pid, *descendants(process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(DEADLINE_S)


def two_folders(root: Path, **options: int) -> list[Path]:
    folders = [root / "a" / "run", root / "b" / "run"]
    for folder in folders:
        folder.parent.mkdir(parents=True)
        new_run(folder, **options)
    return folders


def test_stopped_by_any_node_and_resumed_from_the_heads_checkpoint_the_losses_are_those_of_one_node(
    tmp_path: Path,
) -> None:
    whole = new_run(tmp_path / "whole", steps=STEPS, micro_batch=2)
    assert run_to_end(whole, ranks=2) == 0
    other, head = two_folders(tmp_path, steps=STEPS, micro_batch=2)
    (other / "stop").touch()  # of no attempt: it stops nothing
    with nodes([other, head], head=1) as started:
        until(lambda: last_step(head) >= 12)
        (other / "stop-1").touch()
        assert [process.wait(DEADLINE_S) for process in started] == [0, 0]
    stopped = verdict(head)
    assert stopped["outcome"] == "stopped"
    assert not any((other / name).exists() for name in (METRICS, EVENTS, CHECKPOINTS))
    (other / "stop-1").unlink(missing_ok=True)
    with nodes([other, head], head=1) as started:
        assert [process.wait(DEADLINE_S) for process in started] == [0, 0]
    assert verdict(head)["outcome"] == "finished"
    assert events(head, "resumed")[-1]["step"] == stopped["step"] < STEPS
    assert losses(head) == losses(whole)  # bit by bit
    assert not list(other.glob(".tmp-received*"))


def test_a_checkpoint_of_the_head_is_measured_by_all_nodes_or_by_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, head = two_folders(tmp_path, steps=10)
    assert run_to_end(head, ranks=1) == 0
    (head / "train.log").unlink()
    (newest,) = (each.name for each in (head / CHECKPOINTS).glob("step-*") if not each.is_symlink())

    def words(folder: Path) -> list[str]:
        checkpoint = folder / CHECKPOINTS / newest
        return ["trainer.evaluate", str(checkpoint), "--slice", "0", "640", "--device", "cpu"]

    def lines(text: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    assert evaluate(words(head)[1:]) == 0
    alone = lines(capsys.readouterr().out)
    with nodes([other, head], head=1, words=words) as started:
        assert [process.wait(DEADLINE_S) for process in started] == [0, 0]
    both = lines((head / "train.log").read_text())
    assert both[0]["ranks"] == 2 and not lines((other / "train.log").read_text())
    assert both[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=1e-6)
    assert not list(other.glob(".tmp-received*"))

    (other.parent / "tokens.safetensors").unlink()
    with nodes([other, head], head=1, words=words) as started:
        assert [process.wait(DEADLINE_S) for process in started] == [1, 1]
    said = lines((head / "train.log").read_text())[-1]
    assert said["kind"] == "failed" and "tokens.safetensors" in str(said["reason"])
