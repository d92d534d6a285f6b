"""The folder of a checkpoint on this computer, for the verbs that read one."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.errors import UserError
from trainer import contract


def checkpoint_here(home: Path, run_id: str, name: str) -> Path:
    """`best`, `latest` or `step-000617` of a run's mirror. Raises UserError with the fetch command."""
    folder = home / "runs" / run_id / contract.CHECKPOINTS / name
    if not folder.is_dir():
        step = contract.checkpoint_step(name)
        more = f" --step {step}" if step is not None else ""
        raise UserError(f"{run_id}: {name} is not here", f"gptctl fetch {run_id}{more}, or --on-host")
    return folder


def checkpoint_named(text: str) -> str:
    """The folder's name for what a user types: best, latest, or a step. Raises UserError."""
    if text in (contract.BEST, contract.LATEST):
        return text
    digits = text.removeprefix("step-")
    if digits.isascii() and digits.isdigit():
        return contract.checkpoint_name(int(digits))
    raise UserError(f"--checkpoint {text}: must be best, latest or a step, such as 617")
