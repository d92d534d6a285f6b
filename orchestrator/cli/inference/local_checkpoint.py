"""The folder of a checkpoint on this computer, for the verbs that read one."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.runs.origin.imports import MACHINE, NOWHERE, RECIPE
from trainer import run_files


def checkpoint_here(home: Path, run_id: str, name: str) -> Path:
    """`best`, `latest` or `step-000617` of a run's mirror. Raises UserError with the fetch command."""
    folder = home / "runs" / run_id / run_files.CHECKPOINTS / name
    if not folder.is_dir():
        step = run_files.checkpoint_step(name)
        more = f" --step {step}" if step is not None else ""
        raise UserError(f"{run_id}: {name} is not here", f"gptctl fetch {run_id}{more}, or --on-host")
    return folder


def folder_named(text: str | None) -> Path | None:
    """The folder or file of a checkpoint, a run, an export or a foreign model you typed instead of a run; None for a
    run's id. Raises UserError for a path that does not exist."""
    if text is None or not Path(text).is_dir():
        if text and "/" in text:
            if (file := Path(text).expanduser()).exists():
                return file.absolute()
            raise UserError(f"no such folder: {text}", "name a run (gptctl status), or a folder of gptctl export")
        return None
    return Path(text).absolute()


def model_folder(ledger: Ledger, run_id: str | None, step: int | None) -> tuple[str, Path]:
    """What to call a model that is here, and its folder: of the run you named, or the folder you named itself."""
    folder = folder_named(run_id)
    if folder is not None:
        return folder.name, folder
    run = ledger.find_run(run_id)
    name = run_files.BEST if step is None else run_files.checkpoint_name(step)
    return run.name or run.id, checkpoint_here(ledger.home, run.id, name)


def checkpoint_named(text: str) -> str:
    """The folder's name for what a user types: best, latest, or a step. Raises UserError."""
    if text in (run_files.BEST, run_files.LATEST):
        return text
    digits = text.removeprefix("step-")
    if digits.isascii() and digits.isdigit():
        return run_files.checkpoint_name(int(digits))
    raise UserError(f"--checkpoint {text}: must be best, latest or a step, such as 617")


def as_run(folder: Path) -> RunRecord:
    """A model in a folder as the record that it has nowhere: for the functions that read one. Never kept."""
    return RunRecord(
        id=folder.name, recipe=RECIPE, recipe_data={"name": RECIPE, "model": {}, "data": {}}, host=NOWHERE,
        machine=MACHINE, created_at=0.0, state=State.ENDED, outcome=Outcome.IMPORTED,
    )  # fmt: skip
