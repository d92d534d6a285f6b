"""`gptctl ssh`: a shell, or one command, on the machine of a run or on a host, over gptctl's own connection."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from orchestrator.cli.connections import shell_of, shell_to
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.core.config.inventory import load_inventory
from orchestrator.core.errors import UserError
from orchestrator.core.ports import Shell
from orchestrator.ledger.ledger import Ledger


def ssh(target: str | None, command: list[str], inventory: Path | None, *, accept_new: bool) -> int:
    """Replaces this process with ssh (for `local`, with a shell), so that its exit code and terminal are ours."""
    with open_ledger() as ledger:
        argv = _argv(ledger, target, inventory, accept_new=accept_new)
    if argv is None:
        local = command or [os.environ.get("SHELL", "/bin/sh")]
        return _become(local)
    # One word for the far shell: ssh itself would join the words with spaces and lose their quotes.
    return _become([*argv, *([shlex.join(command)] if command else [])])


def _argv(ledger: Ledger, target: str | None, inventory: Path | None, *, accept_new: bool) -> list[str] | None:
    """The ssh command to the target, after one connection that checked and pinned its key; None for this computer."""
    hosts = load_inventory(inventory, ledger.home)
    if target is not None and target in hosts.hosts:
        with shell_to(ledger.home, hosts.host(target), accept_new=accept_new) as shell:
            return _interactive(shell)
    try:
        run = ledger.find_run(target)
    except UserError as error:
        if target is None:
            raise
        known = ", ".join(hosts.hosts)
        raise UserError(f"{target!r} is neither a host ({known}) nor a run: {error.message}", error.hint) from error
    with shell_of(ledger, run) as shell:
        return _interactive(shell)


def _interactive(shell: Shell) -> list[str] | None:
    argv = shell.openssh()
    return None if argv is None else [word for word in argv if word != "-T"]


def _become(argv: list[str]) -> int:
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise UserError(f"cannot run {argv[0]}: {error.strerror}", "gptctl check shows what is missing") from error
