"""Sending: the trainer's source and the data go to the machine, each byte verified; only what is missing is sent."""

from __future__ import annotations

import hashlib
from pathlib import Path

from orchestrator.core.facts.run_facts import DataOnMachine, Synced
from orchestrator.remote.transfer import transfer
from orchestrator.stages.context import RunContext
from orchestrator.stages.data import sent_data
from orchestrator.stages.data.pulled_data import pull_dataset
from orchestrator.stages.machine.jobs import progress
from trainer import contract

LITTLE_BYTES = 64 << 20
"""Of data: up to this much is sent while the machine is busy, without a progress line."""


def send_ahead(context: RunContext, python: str | None) -> None:
    """Sends small data from here before its turn; sync finds it sent by this process. `python` will
    most likely train: it compiles the source once, where every rank would compile it again."""
    if sent_data.is_elsewhere(context) or sent_data.size_bytes(context) > LITTLE_BYTES:
        return
    context.sent_ahead = Synced(push_trainer(context), place_data(context))
    if python is not None:
        context.shell.run([python, "-m", "compileall", "-q", context.sent_ahead.source])


def source_digest(package: Path) -> str:
    """Names and contents of the trainer's source files, 16 hex digits of a sha256."""
    whole = hashlib.sha256()
    for name in source_files(package):
        whole.update(name.encode() + b"\0" + (package / name).read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def source_files(package: Path) -> list[str]:
    """The trainer's modules, sorted."""
    return sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))


def push_trainer(context: RunContext) -> str:
    package = Path(contract.__file__).parent
    folder = f"{context.agent.root}/src/{source_digest(package)}"
    report = transfer.push_tree(
        context.shell, package, f"{folder}/trainer", source_files(package), progress(context, "trainer source")
    )
    context.say(f"trainer source: {report.files_sent} files sent ({report.way})")
    return folder


def place_data(context: RunContext) -> DataOnMachine:
    """Brings the files to the machine, unless they are there."""
    if sent_data.is_elsewhere(context):
        return pull_dataset(context, context.recipe.data.source or "")
    if context.shell.openssh() is None:
        _, dataset, _ = sent_data.found_here(context)
        return sent_data.in_place(
            context, dataset, {shard: str(sent_data.path_of(shard).resolve()) for shard in dataset.files}
        )
    return sent_data.send(context, lambda path, digest, name: _push(context, path, digest, name))


def _push(context: RunContext, path: Path, digest: str, name: str) -> str:
    """Sends a file into the folder of its digest, unless it is there."""
    folder = context.host.data_folder or context.agent.root
    destination = f"{folder}/data/{digest}/{name or path.name}"
    transfer.push_file(context.shell, path, destination, progress(context, path.name))
    return destination
