"""Joins the ports: which provider, shell and agent a host gets, and how a run and its rental come into being.

Decides nothing about a run; `pipeline.py` does that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import providers, storage
from orchestrator.core import machines
from orchestrator.core.config.home_box import HomeBox, by_ssh_alone, is_home, parts
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.events import Event
from orchestrator.core.machines import MachineType
from orchestrator.core.planning.plan import Plan
from orchestrator.core.ports import Address, Provider, Shell, Storage
from orchestrator.core.states import State
from orchestrator.datasets import downloads
from orchestrator.ledger.identity import new_rental_id, new_run_id
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.runs import own_version
from orchestrator.stages.context import RunContext
from orchestrator.stores.home_box import HomeBoxStorage

LOCAL = "local"


@dataclass(frozen=True)
class RunRequest:
    """What `gptctl run` was asked for, with everything looked up and agreed to."""

    recipe: Recipe
    host: HostSpec
    machine: MachineType
    plan: Plan
    alternatives: tuple[Plan, ...] = ()
    """Plans on other machine types of the host, agreed to as well."""
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None
    keep: bool = False
    wait: bool = False
    accept_new_host_key: bool = False
    on_rental: str | None = None
    resume_from: str | None = None
    """A checkpoint's folder on this side, or its URI."""
    resume_step: int = 0
    resume_files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Its files, with what they must be: name to {"size_bytes", "sha256"}."""
    home_boxes: tuple[HomeBox, ...] = ()
    """Those that its store or the checkpoint to go on from lie on."""


def new_run(ledger: Ledger, request: RunRequest, now: float) -> RunRecord:
    """Writes the run, and its rental unless it goes on one that is up, in state planned. Touches nothing else."""
    rental_id = request.on_rental or _new_rental(ledger, request, now)
    run = RunRecord(
        id=new_run_id(request.recipe.name, now),
        name=request.name,
        labels=dict(request.labels),
        note=request.note,
        recipe=request.recipe.name,
        recipe_digest=request.recipe.digest,
        recipe_data=request.recipe.resolved(),
        host=request.host.name,
        host_data=request.host.resolved(),
        machine=request.machine.name,
        rental_id=rental_id,
        plan=request.plan.to_json(),
        options={
            "made_by": own_version.made_by(),
            "accept_new_host_key": request.accept_new_host_key,
            "resume_from": request.resume_from,
            "resume_step": request.resume_step,
            "resume_files": {name: dict(entry) for name, entry in request.resume_files.items()},
            "home_boxes": [box.to_json() for box in request.home_boxes],
            "wait": request.wait,
            "alternatives": [plan.to_json() for plan in request.alternatives],
        },
        state=State.PLANNED,
        created_at=now,
        total_steps=request.plan.steps,
        keep=request.keep,
    )
    ledger.add_run(run)
    return run


def _new_rental(ledger: Ledger, request: RunRequest, now: float) -> str:
    host = request.host
    rental = Rental(
        id=new_rental_id(request.machine.name, now),
        provider=host.provider,
        host=host.name,
        machine=request.machine.name,
        price_per_hour_usd=request.plan.price_per_hour_usd or 0.0,
        created_at=now,
        folder=str(ledger.home / "machine") if host.provider == LOCAL else host.folder,
    )
    ledger.add_rental(rental)
    return rental.id


def open_context(home: Path, ledger: Ledger, run_id: str, listener: Callable[[Event], None]) -> RunContext:
    """Everything a stage needs for this run, from what the ledger kept of it; nothing is looked up in files again."""
    run = ledger.run(run_id)
    host = HostSpec.from_resolved(run.host_data)
    machine = machines.machine_type(run.machine)
    accept_new = bool(run.options.get("accept_new_host_key"))
    boxes = [HomeBox.from_json(each) for each in run.options.get("home_boxes") or []]

    def connect(address: Address) -> Shell:
        return open_shell(home, address, accept_new=accept_new)

    return RunContext(
        home=home,
        ledger=ledger,
        run_id=run_id,
        recipe=Recipe.from_resolved(run.recipe_data),
        host=host,
        machine=machine,
        provider=provider_of(host, machine, home),
        connect=connect,
        storage=lambda uri: storage_of(uri, lambda name: _named(boxes, name), connect),
        now=time.time,
        listener=listener,
        bring_text=lambda uri, tell: _bring_text(home, uri, tell),
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
    """The provider of a host entry."""
    return providers.load(host.provider).provider(host, machine)


def open_shell(home: Path, address: Address, *, accept_new: bool = False, deadline_s: float = 10.0) -> Shell:
    """A connection to a machine; this one needs none."""
    if address.host is None:
        return LocalShell(address)
    # Only now: the SSH library costs more time than a whole `gptctl plan`.
    from orchestrator.remote.shell import ssh_shell

    return ssh_shell.connect(
        address, known_hosts=home / "known_hosts", accept_new=accept_new, connect_deadline_s=deadline_s
    )


def detect_local_machine() -> MachineType:
    """This machine's type: its GPUs by nvidia-smi, else CPU ranks."""
    query = "nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits || true"
    answer = LocalShell(Address()).run(["sh", "-c", query], deadline_s=10)
    cards = [line.rpartition(",") for line in answer.stdout.decode(errors="replace").splitlines() if "," in line]
    memory_gib = min((float(mib) / 1024 for _, _, mib in cards if mib.strip().isdigit()), default=0.0)
    return machines.local_machine([name.strip() for name, _, _ in cards], os.cpu_count() or 1, memory_gib)
