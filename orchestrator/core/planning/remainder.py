"""What is left of a recipe for a run that resumes from a checkpoint of another run: its steps, and what
it need not read.

Example: `left(820, 800)` -> 20
"""

from __future__ import annotations

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import UserError


def left(steps: int, from_step: int) -> int:
    """The steps after `from_step`, of `steps` in all. Raises UserError where none is left."""
    if from_step >= steps:
        raise UserError(
            f"--resume-from: its checkpoint is of step {from_step:,}, and this recipe ends at step {steps:,}",
            "nothing is left to train: raise train.tokens, or resume from an earlier checkpoint",
        )
    return steps - from_step


def unread_steps(recipe: Recipe, host: HostSpec | None, from_step: int) -> int:
    """The first steps whose tokens the machine does not pull: those before the checkpoint, where it pulls tokens in
    their order. A machine of your own pulls them all, since it keeps them for the next run."""
    pulled = recipe.data.prepare is None and "://" in (recipe.data.source or "")
    is_rented = host is None or host.paid
    return from_step if pulled and is_rented and recipe.data.order == "sequential" else 0
