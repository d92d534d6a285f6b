"""`gptctl logs`: the trainer's log or metrics, as mirrored here, and live from the machine if asked.

Takes no lock and writes nothing: the gptctl that drives the run mirrors the files. On a terminal, log text is printed
without terminal escapes.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

from orchestrator.agent.contract.names import BootCode, Code, JobName
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen.foreign import clean
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import AgentError, LinkLost, Unreachable, UserError
from orchestrator.core.states import State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.remote.agent_client.answers import Data, Heartbeat
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.agent_client.lines import LineBuffer
from orchestrator.stages.checkpoints import mirrored_files
from trainer.run_files import LOG, METRICS

AGAIN_S = 2.0
LONGEST_WAIT_S = 30.0
NOT_YET = (Code.NO_SUCH_RUN, Code.NO_SUCH_JOB, BootCode.AGENT_MISSING)


def logs(wanted: str | None, *, follow: bool, metrics: bool, lines: int | None, node: int = 0) -> int:
    """Prints what is mirrored; with `follow` continues until the training ends or Ctrl-C, which changes nothing.
    Another node than the head has its log itself."""
    with open_ledger() as ledger:
        run = ledger.find_run(wanted)
        if node:
            return _of_node(ledger, run, node, follow=follow, lines=lines)
        name = METRICS if metrics else LOG
        path = ledger.home / "runs" / run.id / name
        offset = print_file(path, lines)
        if offset == 0 and not follow:
            _nothing_yet(run, name)
        if follow and run.state is not State.ENDED:
            try:
                _follow(ledger, run, name, offset)
            except KeyboardInterrupt:
                print("the training continues; gptctl stop ends it", file=sys.stderr)
        return 0


def _of_node(ledger: Ledger, run: RunRecord, node: int, *, follow: bool, lines: int | None) -> int:
    """The log as that node has it, and with `follow` until its part of the training ends."""
    from orchestrator.remote.shell.opened import open_shell

    peers = HostSpec.from_resolved(run.host_data).other_nodes
    if node > len(peers):
        raise UserError(f"{run.id} has {1 + len(peers)} nodes, numbered from 0", f"gptctl logs {run.id}")
    host, kept, buffer, came = peers[node - 1], deque[bytes](maxlen=lines), LineBuffer(), 0
    address = host.reach()
    if host.paid:
        rental = ledger.rental(run.rental_id or "")
        if rental.state != RENTAL_OPEN:
            raise UserError(f"{run.id}: node {node} was destroyed, and its log with it", f"gptctl logs {run.id}")
        address = rental.of_node(node).address
    with (
        closing(open_shell(ledger.home, address)) as shell,
        Agent(shell, host.folder).follow(run.id, JobName.TRAIN, {LOG: 0}) as answers,
    ):
        for answer in answers:
            if isinstance(answer, Data) and answer.file == LOG:
                came = answer.offset + len(answer.data)
                kept.extend(buffer.take(answer.data))
            elif isinstance(answer, Heartbeat) and not follow and came >= answer.status["sizes"].get(LOG, 0):
                break
            while follow and kept:
                _print(kept.popleft())
    for line in kept:
        _print(line)
    return 0


def print_file(path: Path, lines: int | None) -> int:
    """Prints whole lines of a file, the last `lines` if given; returns the byte offset after the last of them."""
    kept: deque[bytes] = deque(maxlen=lines)
    offset = 0
    for part in (*mirrored_files.parts(path), path):
        offset = 0
        with part.open("rb") if part.is_file() else nullcontext(()) as file:
            for line in file:
                if line.endswith(b"\n"):
                    kept.append(line)
                    offset += len(line)
    for line in kept:
        _print(line)
    return mirrored_files.start(path) + offset


def _print(line: bytes) -> None:
    text = line.decode(errors="replace").rstrip("\n")
    print(clean(text) if sys.stdout.isatty() else text, flush=True)


def _nothing_yet(run: RunRecord, name: str) -> None:
    if run.state is State.ENDED:
        raise UserError(f"{run.id} ended ({run.outcome}) without a {name}", f"gptctl status {run.id}")
    print(f"{run.id}: nothing mirrored yet; gptctl logs {run.id} -f asks the machine", file=sys.stderr)


def _follow(ledger: Ledger, run: RunRecord, name: str, offset: int) -> None:
    """Follows the file on the machine from that byte; reconnects at the byte it reached."""
    wait_s = AGAIN_S
    buffer = LineBuffer()
    while ledger.run(run.id).state is not State.ENDED:
        try:
            for data in _stream(ledger, run, name, offset):
                offset = data.offset + len(data.data)
                for line in buffer.take(data.data):
                    _print(line)
                wait_s = AGAIN_S
            return
        except (LinkLost, Unreachable) as error:
            print(f"{clean(error.message)}; trying again in {wait_s:.0f} s", file=sys.stderr)
        except AgentError as error:
            if error.code not in NOT_YET:
                raise
        time.sleep(wait_s)
        wait_s = min(LONGEST_WAIT_S, 2 * wait_s)


def _stream(ledger: Ledger, run: RunRecord, name: str, offset: int) -> Iterator[Data]:
    """Yields bytes of one file of the run folder on the machine until the training has ended."""
    from orchestrator.cli.connections import agent_of

    with agent_of(ledger, run) as agent, agent.follow(run.id, JobName.TRAIN, {name: offset}) as lines:
        for line in lines:
            if isinstance(line, Data) and line.file == name:
                yield line
