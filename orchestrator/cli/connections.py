"""A connection to the machine of a run or of a host, for verbs that only read: logs, ssh, check, sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import Unreachable
from orchestrator.core.ports import Shell
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.opened import open_shell


@contextmanager
def shell_of(ledger: Ledger, run: RunRecord) -> Iterator[Shell]:
    """A shell on the run's machine. Raises Unreachable if no machine has answered yet."""
    rental = ledger.rental(run.rental_id or "")
    if not rental.facts.reached:
        raise Unreachable(f"{run.id}: no machine has answered yet ({run.state})", f"gptctl resume {run.id}")
    accept_new = run.facts.accept_new_host_key
    with _closing(open_shell(ledger.home, rental.address, accept_new=accept_new)) as shell:
        yield shell


@contextmanager
def agent_of(ledger: Ledger, run: RunRecord) -> Iterator[Agent]:
    """The agent on the run's machine."""
    with shell_of(ledger, run) as shell:
        folder = ledger.rental(run.rental_id or "").folder
        yield Agent(shell, folder)


@contextmanager
def shell_to(home: Path, host: HostSpec, *, accept_new: bool) -> Iterator[Shell]:
    """A shell on a host of the inventory."""
    with _closing(open_shell(home, host.reach(), accept_new=accept_new)) as shell:
        yield shell


@contextmanager
def _closing(shell: Shell) -> Iterator[Shell]:
    try:
        yield shell
    finally:
        shell.close()
