"""Checkpoints on this side: copied, verified against their manifests, linked, and marked safe on the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from orchestrator.core.errors import AgentError, LinkLost, RemoteError, Unreachable
from orchestrator.remote.agent_client.client import Checkpoint
from orchestrator.remote.transfer import transfer
from orchestrator.remote.whole_files import require_space
from orchestrator.stages.checkpoints import late_store, slow_fetch
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import progress
from trainer import run_files

TELLING_BYTES = 32 << 20
"""Less says more about the first round trips than about the line."""
UNWRITABLE = ("disk-full", "read-only")
"""The agent's words for a disk that takes no note."""


def pull_newest(context: RunContext) -> None:
    """Best and latest, while the training runs: what is left if the machine is taken away. Removes older ones here.

    A checkpoint that the trainer's retention removes meanwhile is let go: a newer one is there, or comes.
    """
    folder = context.mirror / run_files.CHECKPOINTS
    found = [each for each in context.agent.manifest(context.run_id) if each.best or each.latest]
    try:
        pull_or_store(context, found, folder)
    except (LinkLost, Unreachable):
        raise
    except RemoteError as error:
        context.emit("progress", what="mirror", text=f"the next one: {error.message}")
    else:
        prune(folder, {each.name for each in found})


def prune(folder: Path, keep: Collection[str]) -> None:
    """Removes checkpoints of this side but those named; a folder without a manifest was never whole."""
    for path in folder.glob("step-*"):
        if path.name not in keep:
            shutil.rmtree(path)


def drop_incomplete(folder: Path) -> None:
    """Removes what a fetch began that a store took over: a folder without a manifest was never whole."""
    for path in folder.glob("step-*"):
        if not (path / run_files.MANIFEST_FILE).exists():
            shutil.rmtree(path)


def pull_or_store(context: RunContext, checkpoints: Sequence[Checkpoint], folder: Path) -> bool:
    """As pull. False: that takes too long, and the machine stores them from now on (late_store.py)."""
    try:
        pull(context, checkpoints, folder, may_stop=context.host.fetch_store is not None)
    except slow_fetch.TooSlow as slow:
        if late_store.takes_over(context, slow):
            return False
        pull(context, checkpoints, folder)
    return True


def pull(context: RunContext, checkpoints: Sequence[Checkpoint], folder: Path, *, may_stop: bool = False) -> None:
    """Copies checkpoints into `folder`, verifies them, marks them safe on the machine and links latest and best.
    may_stop: raises TooSlow where the rest takes longer than `fetch_minutes`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    missing = sum(found.size_bytes for found in checkpoints if not (folder / found.name).exists())
    require_space(folder, missing)
    began, slow = context.now(), slow_fetch.Watch(context, missing, may_stop=may_stop)
    for found in sorted(checkpoints, key=lambda each: (not each.best, not each.latest, -each.step)):
        is_new = not (folder / found.name).exists()
        transfer.pull_files(
            context.shell,
            f"{context.agent.root}/runs/{context.run_id}/{run_files.CHECKPOINTS}/{found.name}",
            folder / found.name,
            found.files,
            slow.beside(progress(context, found.name)),
            manifest=run_files.MANIFEST_FILE,
        )
        slow.done(found.size_bytes if is_new else 0)
        mark_safe(context, found)
        context.ledger.update_run(context.run_id, safe_step=max(found.step, context.run.safe_step or 0))
        for name, is_it in ((run_files.LATEST, found.latest), (run_files.BEST, found.best)):
            if is_it:
                link(folder / name, found.name)
    _note_rate(context, missing, context.now() - began)
    if checkpoints:
        total = sum(found.size_bytes for found in checkpoints)
        count = f"{len(checkpoints)} checkpoint{'s' * (len(checkpoints) != 1)}"
        context.say(f"{count} here and verified ({total / 1e6:.1f} MB) in {folder}")


def _note_rate(context: RunContext, moved_bytes: int, took_s: float) -> None:
    """For the next plan on a machine of this region, where enough moved to tell."""
    if context.provider.paid and moved_bytes >= TELLING_BYTES and took_s > 1:
        context.set_rental_facts(fetch_mb_per_s=moved_bytes / took_s / 1e6)


def mark_safe(context: RunContext, found: Checkpoint) -> None:
    """Tells the machine that it may remove this one. A machine that cannot record that keeps it, which does no harm."""
    try:
        context.agent.safe(context.run_id, found.step, found.manifest_sha256)
    except AgentError as error:
        if error.code not in UNWRITABLE:
            raise
        context.emit("warning", f"{found.name} is here and verified; the machine cannot note it: {error.message}")


def link(path: Path, target: str) -> None:
    """Points a symlink at `target` by rename, so that there is never a moment without one."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)
