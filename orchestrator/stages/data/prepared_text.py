"""`[data.prepare]`: tokens made once where the CLI runs, by the trainer's own program in an interpreter that has it.

A detached job of this machine's agent, so that a CLI that dies loses nothing. Not a stage of its own: sent_data asks
for it, before a machine is bought.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.agent.contract.names import JobName
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.config.recipe_tables.data_tables import Prepare
from orchestrator.core.datasets.local_dataset import prepared
from orchestrator.core.errors import UserError
from orchestrator.datasets.downloads import bring_here
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.local_agent import agent_here
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import progress, run_job
from trainer import contract
from trainer.layout.train_or_validation import is_token_file

PYTHON_STDLIB = "python-stdlib"


def prepared_folder(context: RunContext) -> Path:
    """The folder with the prepared dataset; prepares it if it is not there. dataset.json marks a whole one."""
    wanted = context.recipe.data.prepare
    assert wanted is not None
    sources, request = [_absolute(each) for each in wanted.sources], _request(context.recipe, wanted)
    digest = hashlib.sha256(json.dumps([*(f"--source={each}" for each in sources), *request]).encode()).hexdigest()[:16]
    folder = context.home / "data" / digest
    done = folder / "dataset.json"
    if not done.is_file() or any(_has_newer(each, done) for each in sources):
        context.say(f"preparing {wanted.named} with tokenizer {wanted.tokenizer} on this computer (once)")
        _prepare(
            context,
            [*_texts(context, wanted), *_excluded(context, wanted), *_request_of_program(context.recipe, wanted)],
            digest,
            folder,
        )
        made = prepared(folder)
        what = "examples" if made.examples else "documents"
        context.say(f"held out for validation: {made.split.held_out:,} of {made.documents or 0:,} {what}")
        if made.examples and made.examples.dropped:
            context.say(made.examples.dropped_words())
    return folder


def _request(recipe: Recipe, wanted: Prepare) -> list[str]:
    """What decides what the dataset is, beside the sources: part of the folder's name."""
    more = [f"--weight={each.weight} {each.column}" for each in wanted.mix]
    more += [f"--exclude={_absolute(wanted.exclude)}"] if wanted.exclude else []
    return [*_request_of_program(recipe, wanted), *more]


def _request_of_program(recipe: Recipe, wanted: Prepare) -> list[str]:
    """Arguments of `python -m trainer.prepare` without the text and what is left out of it."""
    task = recipe.task.request(recipe.model.context_length, wanted.documents)
    if task is not None:
        return [f"--tokenizer={wanted.tokenizer}", f"--task={task}"]
    arguments = [f"--tokenizer={wanted.tokenizer}", f"--separator={wanted.separator}", f"--column={wanted.column}"]
    arguments += [f"--documents={wanted.documents}"] if wanted.documents else []
    arguments += [f"--hold-out-every={wanted.hold_out_every}"] if wanted.hold_out_every else []
    return [*arguments, f"--tokens={wanted.tokens}"] if wanted.tokens else arguments


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


def _texts(context: RunContext, wanted: Prepare) -> list[str]:
    """Arguments that say where the text is on this computer; text from elsewhere is downloaded first."""
    if wanted.source is not None:
        paths, revision = _here(context, wanted.source)
        named = [f"--named={wanted.source}"] if "://" in wanted.source else []
        return [*(f"--source={path}" for path in paths), *named, *([f"--revision={revision}"] * bool(revision))]
    arguments = []
    for each in wanted.mix:
        paths, revision = _here(context, each.source)
        values = {"source": each.source, "weight": each.weight, "paths": list(paths), "column": each.column}
        arguments.append(f"--mix={json.dumps({**values, 'revision': revision or None})}")
    return arguments


def _here(context: RunContext, source: str) -> tuple[Sequence[str], str]:
    """Paths on this computer, and the commit of a repository, else an empty text."""
    if "://" not in source:
        return [_absolute(source)], ""
    return context.bring_text(source, progress(context, "text"))


def _excluded(context: RunContext, wanted: Prepare) -> list[str]:
    """Arguments that name the token files whose documents are left out, on this computer."""
    if wanted.exclude is None:
        return []
    path = _absolute(wanted.exclude)
    if "://" in path:
        files = bring_here(context.home, path, progress(context, "excluded"), is_token_file)
        return [*(f"--exclude={file}" for file in files), f"--excluded-name={wanted.exclude}"]
    return [f"--exclude={path}", f"--excluded-name={wanted.exclude}"]


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
