"""The template of instructions that a model was tuned with, and the models that were tuned with none.

Example: `answering_prompt(Path("runs/instruct"), None)` -> "alpaca"; of a base model it raises CheckpointError
"""

from __future__ import annotations

import json
from pathlib import Path

from trainer.arguments import WRITES_NO_TEXT
from trainer.checkpoints.export_folder import RECORD
from trainer.checkpoints.manifest import CheckpointError, checkpoint_folder, read_meta, task_of
from trainer.config.task_config import CLASSIFY, INSTRUCT, TaskConfig, task_from
from trainer.model.generate import SamplingError
from trainer.prompt_template import TemplateError, check_template


def answering_prompt(folder: Path, template: str | None) -> str:
    """The template of the run, checkpoint or export, or the one you name. Raises CheckpointError for a model that was
    not tuned on instructions, unless you name one, and SamplingError for a template without {instruction}."""
    task = _task(folder)
    if task.kind == CLASSIFY:
        raise CheckpointError(f"{folder}: {WRITES_NO_TEXT}")
    if template is None and task.kind != INSTRUCT:
        raise CheckpointError(
            f"{folder}: the model continues text and was not tuned on instructions: let it write with `gptctl sample`, "
            'tune it with [task] kind = "instruct" and [model] init_from, or name the --prompt it was tuned with'
        )
    try:
        check_template(template or task.prompt)
    except TemplateError as error:
        raise SamplingError(str(error).replace("task.prompt", "--prompt")) from error
    return template or task.prompt


def _task(folder: Path) -> TaskConfig:
    """As meta.json of a checkpoint says, or gptctl.json of an export; a base model's where nothing says it."""
    try:
        checkpoint = checkpoint_folder(folder)
    except CheckpointError:
        return _exported_task(folder)
    return task_of(read_meta(checkpoint))


def _exported_task(folder: Path) -> TaskConfig:
    try:
        return task_from(json.loads((folder / RECORD).read_text(encoding="utf-8"))["task"])
    except (OSError, ValueError, KeyError, TypeError):
        return TaskConfig()
