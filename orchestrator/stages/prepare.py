"""`[data.prepare]`: tokens made once where the CLI runs, by the trainer's own program in an interpreter that has it.

A detached job of this machine's agent, so that a CLI that dies loses nothing. Not a stage of its own: sync calls it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.remote.agent import Agent
from orchestrator.remote.local import LocalShell
from orchestrator.stages.context import RunContext
from orchestrator.stages.jobs import run_job
from trainer import contract


def prepared_folder(context: RunContext) -> Path:
    """The folder with the prepared dataset; prepares it if it is not there. dataset.json marks a whole one."""
    wanted = context.recipe.data.prepare
    assert wanted is not None
    arguments = _arguments(context)
    digest = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16]
    folder = context.home / "data" / digest
    if not (folder / "dataset.json").is_file():
        context.say(f"preparing {wanted.source} with tokenizer {wanted.tokenizer} (once)")
        _prepare(context, arguments, digest, folder)
    return folder


def _arguments(context: RunContext) -> list[str]:
    """Of `python -m trainer.prepare`; what they are decides what the dataset is."""
    wanted = context.recipe.data.prepare
    assert wanted is not None
    arguments = ["--source", wanted.source, "--tokenizer", wanted.tokenizer, "--separator", wanted.separator]
    return [*arguments, "--documents", str(wanted.documents)] if wanted.documents else arguments


def _prepare(context: RunContext, arguments: list[str], digest: str, folder: Path) -> None:
    here = Agent(LocalShell(), str(context.home / "machine"), sys.executable)
    here.ensure()
    interpreter = _interpreter_here(context, here)
    spec = {
        "argv": [interpreter, "-m", "trainer.prepare", *arguments, "--to", str(folder)],
        "pythonpath": str(Path(contract.__file__).parent.parent),
        "cwd": str(context.home),
    }
    exit_record = run_job(context, here, "prepare", digest, spec)
    if exit_record["outcome"] != "finished":
        raise UserError(
            "data.prepare failed: " + " | ".join(exit_record["last_lines"][-3:]),
            f"see {context.home}/machine/jobs/{context.run_id}",
        )


def _interpreter_here(context: RunContext, here: Agent) -> str:
    facts = here.facts()
    able = [found["path"] for found in facts["interpreters"] if found.get("trainer")]
    if not able:
        raise UserError(
            "data.prepare needs numpy, safetensors and tiktoken on this machine, and no python here has them",
            "pip install 'gptctl[trainer]'",
        )
    return str(able[0])
