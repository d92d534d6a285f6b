"""Joins the ports: which provider, shell and agent a host gets, and how a run and its rental come into being.

Decides nothing about a run; `pipeline.py` does that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator import providers, storage
from orchestrator.core import machines
from orchestrator.core.config.home_box import HomeBox, by_ssh_alone, is_home, parts
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.events import Listener
from orchestrator.core.machines import MachineType
from orchestrator.core.ports import Address, Provider, Shell, Storage
from orchestrator.datasets import downloads
from orchestrator.ledger.ledger import Ledger
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.shell.opened import open_shell
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.stages.context import RunContext
from orchestrator.stores.home_box import HomeBoxStorage

LOCAL = "local"


def open_context(home: Path, ledger: Ledger, run_id: str, listener: Listener) -> RunContext:
    """Everything a stage needs for this run, from what the ledger kept of it; nothing is looked up in files again."""
    run = ledger.run(run_id)
    host = HostSpec.from_resolved(run.host_data)
    machine = machines.machine_type(run.machine)

    def connect(address: Address) -> Shell:
        return open_shell(home, address, accept_new=run.facts.accept_new_host_key)

    jobs = providers.load_engine(host.provider)
    return RunContext(
        home=home,
        ledger=ledger,
        run_id=run_id,
        recipe=Recipe.from_resolved(run.recipe_data),
        host=host,
        machine=machine,
        provider=provider_of(host, machine, home),
        connect=connect,
        storage=lambda uri: storage_of(uri, lambda name: _named(run.facts.home_boxes, name), connect),
        now=time.time,
        listener=listener,
        bring_text=lambda uri, tell: _bring_text(home, uri, tell),
        engine_of=None if jobs is None else lambda shell: jobs.engine(host, shell, since=run.created_at),
    )


def storage_of(uri: str, box_of: Callable[[str], HomeBox], connect: Callable[[Address], Shell]) -> Storage:
    """What answers for a URI. box_of: the home box of an ssh:// URI."""
    return HomeBoxStorage(box_of(uri), connect) if is_home(uri) else storage.of(uri)


def _named(boxes: Sequence[HomeBox], uri: str) -> HomeBox:
    name = parts(uri)[0]
    return next((box for box in boxes if box.name == name), None) or by_ssh_alone(uri)


def _bring_text(home: Path, uri: str, tell: Callable[[Transfer], None]) -> tuple[Sequence[str], str]:
    text = downloads.bring_text(home, uri, tell, lambda said: None)
    return text.paths, text.revision


def provider_of(host: HostSpec, machine: MachineType, home: Path) -> Provider:
    """The provider of a host entry. It sells single machines, also to one that wants several."""
    return providers.load(host.provider).provider(host.one, machine.node if host.paid else machine)


def detect_local_machine() -> MachineType:
    """This machine's type: its GPUs by nvidia-smi, else CPU ranks. Of several kinds the one with most memory together:
    a display card beside the training cards is left alone."""
    query = "PATH=$PATH:/usr/lib/wsl/lib nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits || true"
    answer = LocalShell(Address()).run(["sh", "-c", query], deadline_s=10)
    rows = [line.rpartition(",") for line in answer.stdout.decode(errors="replace").splitlines()]
    memory_mib: dict[str, list[int]] = {}
    for name, _, mib in rows:
        if name and mib.strip().isdigit():
            memory_mib.setdefault(name.strip(), []).append(int(mib))
    kind = max(memory_mib, key=lambda name: sum(memory_mib[name]), default="")
    cards = memory_mib.get(kind, [])
    return machines.local_machine([kind] * len(cards), os.cpu_count() or 1, min(cards, default=0) / 1024)
