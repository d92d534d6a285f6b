"""Where a run goes on after its machine was taken away: its newest checkpoint that is whole, in the store or here, and
the metrics and events of the attempts before, which go to the next machine.

Example: `newest(context)` -> ResumeFrom("s3://bucket/run/step-000400", 400, {...})
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.checkpoints.store_index import of_manifest
from orchestrator.core.errors import VerificationFailed
from orchestrator.core.facts.run_facts import ResumeFrom
from orchestrator.remote.transfer import transfer
from orchestrator.stages.checkpoints import mirrored_files, store_job
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import progress
from trainer import run_files


def newest(context: RunContext) -> ResumeFrom | None:
    """The checkpoint of the highest step; of two that are equal the store's, which the machine pulls by itself. None:
    it begins at step 0 again."""
    known = context.facts.resume_from
    began = [known] if known is not None and ("://" in known.place or Path(known.place).is_dir()) else []
    return max([*_stored(context), *_here(context), *began], key=lambda each: each.step, default=None)


def _stored(context: RunContext) -> Iterator[ResumeFrom]:
    index = store_job.index(context)
    found = index.newest(resumable=True) if index is not None else None
    if found is not None:
        yield ResumeFrom(f"{store_job.uri(context)}/{found.folder}", found.step, found.files)


def _here(context: RunContext) -> Iterator[ResumeFrom]:
    """The newest one on this side whose every byte is what its manifest promises; says of those that are not."""
    for folder in sorted((context.mirror / run_files.CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            found = whole(folder)
        except (OSError, VerificationFailed) as error:
            context.emit("warning", f"{folder.name} here is damaged: {error}; looking at the one before")
            continue
        if run_files.TRAINER_STATE_FILE in found.files:
            yield found
            return


def whole(folder: Path) -> ResumeFrom:
    """The checkpoint in a folder of this side, every byte compared with its manifest. Raises VerificationFailed, or
    OSError for what cannot be read."""
    content = (folder / run_files.MANIFEST_FILE).read_bytes()
    step = run_files.checkpoint_step(folder.name) or 0
    found = of_manifest(step, folder.name, content, hashlib.sha256(content).hexdigest(), str(folder))
    for name, entry in found.files.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise VerificationFailed(f"{name} is not what its manifest promises")
    return ResumeFrom(str(folder), step, found.files)


def put_aside(context: RunContext, number: int, step: int) -> None:
    """Before attempt `number` + 1: metrics of steps that are trained again go, and the log of the machine that is gone
    moves into the folder attempt-NUMBER."""
    mirrored_files.cut(context.mirror / run_files.METRICS, step)
    for path in context.mirror.glob(f"{run_files.LOG}*"):
        folder = context.mirror / f"attempt-{number}"
        folder.mkdir(exist_ok=True, mode=0o700)
        shutil.move(path, folder / path.name)


def put_records(context: RunContext) -> None:
    """Metrics and events so far, into the run's folder on a machine where it has not started: there they go on."""
    for name in (run_files.METRICS, run_files.EVENTS):
        path = context.mirror / name
        if path.exists():
            destination = f"{context.agent.root}/runs/{context.run_id}/{name}"
            transfer.push_file(context.shell, path, destination, progress(context, name))
