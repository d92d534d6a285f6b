"""Follow: mirror the training's files byte by byte until it has ended. Looks, never steers.

What is mirrored is the offset: each file on this side is a prefix of the one on the machine, so a link that breaks, a
killed CLI or a laptop that slept continues at the same byte, and no line is lost or doubled.
"""

from __future__ import annotations

from orchestrator.core.errors import CommandFailed, LinkLost
from orchestrator.stages.checkpoints.mirror import mirror_until_end
from orchestrator.stages.context import RunContext
from orchestrator.stages.outcome import regroup, training_end


def follow(context: RunContext) -> None:
    """Leaves the run in state ending with its outcome, or planned again without a node that it lost."""
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        exit_record = mirror_until_end(context)
    except CommandFailed as error:  # our session there was killed
        raise LinkLost(error.message, error.hint) from error
    if not regroup.after(context, exit_record):
        training_end.conclude(context, exit_record)
