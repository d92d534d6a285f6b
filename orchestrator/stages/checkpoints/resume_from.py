"""The checkpoint of `--resume-from` or `model.init_from` on the machine: pushed from this side, or pulled by the
machine from its store."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.config.home_box import is_home
from orchestrator.core.errors import UserError
from orchestrator.core.facts.run_facts import ResumeFrom
from orchestrator.core.typed_json import parse
from orchestrator.remote.transfer import transfer
from orchestrator.stages.checkpoints import from_store
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import progress
from trainer import run_files


def place_checkpoint(context: RunContext, origin: ResumeFrom | None, below: str) -> str | None:
    """Its folder on the machine, in the run's folder `below`, or None where there is none to place."""
    if origin is None:
        return None
    source, name = origin.place, run_files.checkpoint_name(origin.step)
    relative = f"runs/{context.run_id}/{below}/{name}"
    destination = f"{context.agent.root}/{relative}"
    if is_home(source):  # no machine can pull from there
        landing = f"store/{context.run_id}/{below}/{name}"
        source = str(from_store.pull_here(context, source, origin.files, landing, what=name))
    if "://" in source:
        context.say(f"the machine pulls {source}")
        from_store.pull(context, context.agent, source, origin.files, relative)
        return destination
    folder = Path(source)
    if not (folder / run_files.MANIFEST_FILE).is_file():
        raise UserError(
            f"{context.run_id} begins with {folder}, and that checkpoint is not on this computer",
            "start a new run with --resume-from where it is, or from a store",
        )
    for each in origin.files or [
        *parse((folder / run_files.MANIFEST_FILE).read_text())["files"],
        run_files.MANIFEST_FILE,
    ]:
        transfer.push_file(context.shell, folder / each, f"{destination}/{each}", progress(context, each))
    return destination
