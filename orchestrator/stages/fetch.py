"""Fetch: every kept, complete checkpoint and the whole log are here, verified against their manifests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.remote import transfer
from orchestrator.remote.agent import Checkpoint
from orchestrator.remote.landing import require_space
from orchestrator.stages.context import RunContext
from orchestrator.stages.follow import mirror_until_end
from orchestrator.stages.sync import progress
from trainer import contract


def fetch(context: RunContext) -> None:
    """The ending stage: all kept checkpoints and every byte of the logs. Nothing to do if nothing was launched."""
    if not context.ledger.attempts(context.run_id) or context.run.options.get("abandon"):
        return
    context.agent.stop(context.run_id)  # a stop that came between two stages may have left it running
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    mirror_until_end(context)
    checkpoints = context.agent.manifest(context.run_id)
    pull(context, [found for found in checkpoints if found.kept], context.mirror / contract.CHECKPOINTS)


def pull(context: RunContext, checkpoints: Sequence[Checkpoint], folder: Path) -> None:
    """Copies checkpoints into `folder`, verifies them, marks them safe on the machine and links latest and best."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    require_space(folder, sum(found.size_bytes for found in checkpoints if not (folder / found.name).exists()))
    for found in sorted(checkpoints, key=lambda each: (not each.best, not each.latest, -each.step)):
        transfer.pull_files(
            context.shell,
            f"{context.agent.root}/runs/{context.run_id}/{contract.CHECKPOINTS}/{found.name}",
            folder / found.name,
            found.files,
            progress(context, found.name),
            manifest=contract.MANIFEST_FILE,
        )
        context.agent.safe(context.run_id, found.step, found.manifest_sha256)
        context.ledger.update_run(context.run_id, safe_step=max(found.step, context.run.safe_step or 0))
        for name, is_it in ((contract.LATEST, found.latest), (contract.BEST, found.best)):
            if is_it:
                link(folder / name, found.name)
    if checkpoints:
        total = sum(found.size_bytes for found in checkpoints)
        context.say(f"{len(checkpoints)} checkpoints here and verified ({total / 1e6:.1f} MB) in {folder}")


def link(path: Path, target: str) -> None:
    """Points a symlink at `target` by rename, so that there is never a moment without one."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)
