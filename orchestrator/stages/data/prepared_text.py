"""`[data.prepare]`: tokens made once where the CLI runs, by the trainer's own program in an interpreter that has it.

A detached job of this machine's agent, so that a CLI that dies loses nothing. Not a stage of its own: sent_data asks
for it, before a machine is bought.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from pathlib import Path

from orchestrator.agent.contract.names import JobName
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.config.data_tables import Prepare
from orchestrator.core.errors import UserError
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.local_agent import agent_here
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import progress, run_job
from trainer import contract

PYTHON_STDLIB = "python-stdlib"


def prepared_folder(context: RunContext) -> Path:
    """The folder with the prepared dataset; prepares it if it is not there. dataset.json marks a whole one."""
    wanted = context.recipe.data.prepare
    assert wanted is not None
    source, request = _absolute(wanted.source), _request(wanted)
    digest = hashlib.sha256(json.dumps([f"--source={source}", *request]).encode()).hexdigest()[:16]
    folder = context.home / "data" / digest
    if not (folder / "dataset.json").is_file() or _has_newer(source, folder / "dataset.json"):
        context.say(f"preparing {wanted.source} with tokenizer {wanted.tokenizer} on this computer (once)")
        _prepare(context, [*_source(context, source), *request], digest, folder)
    return folder


def _request(wanted: Prepare) -> list[str]:
    """Arguments of `python -m trainer.prepare` without the source: with it, what decides what the dataset is."""
    arguments = [f"--tokenizer={wanted.tokenizer}", f"--separator={wanted.separator}", f"--column={wanted.column}"]
    return [*arguments, f"--documents={wanted.documents}"] if wanted.documents else arguments


def _absolute(source: str) -> str:
    """The same source from any folder: a path counts from where gptctl was started."""
    here = "://" not in source and source != PYTHON_STDLIB
    return os.path.abspath(Path(source).expanduser()) if here else source


def _has_newer(source: str, dataset: Path) -> bool:
    """Whether text on this computer was changed since; the program then looks whether its content was, too."""
    if "://" in source or source == PYTHON_STDLIB:
        return False
    paths = Path(source).rglob("*") if Path(source).is_dir() else map(Path, glob.glob(source, recursive=True))
    since = dataset.stat().st_mtime
    return any(path.stat().st_mtime > since for path in paths if path.is_file())


def _source(context: RunContext, source: str) -> list[str]:
    """Where the text is on this computer; text from elsewhere is downloaded first, once per content."""
    if "://" not in source:
        return [f"--source={source}"]
    paths, revision = context.bring_text(source, progress(context, "text"))
    return [
        *(f"--source={path}" for path in paths),
        f"--named={source}",
        *([f"--revision={revision}"] * bool(revision)),
    ]


def _prepare(context: RunContext, arguments: list[str], digest: str, folder: Path) -> None:
    here = agent_here(context.home)
    here.ensure()
    interpreter = _interpreter_here(context, here)
    spec: JobSpec = {
        "argv": [interpreter, "-m", "trainer.prepare", *arguments, "--to", str(folder)],
        "pythonpath": str(Path(contract.__file__).parent.parent),
        "cwd": str(context.home),
    }
    exit_record = run_job(context, here, JobName.PREPARE, digest, spec)
    if exit_record["outcome"] != "finished":
        raise UserError(
            "data.prepare failed: " + " | ".join(exit_record.get("last_lines", [])[-3:]),
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
