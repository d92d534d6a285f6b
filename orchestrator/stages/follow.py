"""Follow: mirror the training's files byte by byte until it has ended. Looks, never steers.

What is mirrored is the offset: each file on this side is a prefix of the one on the machine, so a link that breaks, a
killed CLI or a laptop that slept continues at the same byte, and no line is lost or doubled.
"""

from __future__ import annotations

import time

from orchestrator.core.errors import CommandFailed, LinkLost, Unreachable
from orchestrator.core.states import Seen, State
from orchestrator.stages.checkpoints.mirror import mirror_until_end
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.outcome import machine_gone, regroup, training_end

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
GIVE_UP_S = 3600.0
"""How long an attached follower keeps trying to reach a silent machine before it leaves the run to `resume`."""


def follow(context: RunContext) -> None:
    """Leaves the run in state ending with its outcome, or planned again without a node that it lost. Raises Unreachable
    after an hour of silence: no verdict."""
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    wait_s, silent_since = FIRST_WAIT_S, None
    while True:
        heard = context.now()
        try:
            exit_record = mirror_until_end(context)
            return None if regroup.after(context, exit_record) else training_end.conclude(context, exit_record)
        except (LinkLost, Unreachable, CommandFailed) as error:  # CommandFailed: our session there was killed
            if context.run.state == State.ENDING:
                return  # `release --force` from another gptctl: the machine need not answer any more
            if regroup.without_head(context):
                return
            if context.provider.paid and boot.was_preempted(context):
                return None if regroup.without_head(context, regroup.HEARD_WITHIN_S) else machine_gone.conclude(context)
            boot.refresh_address(context)
            if (context.run.seen_at or 0.0) >= heard:
                silent_since = None
            if context.now() - heard > LONGEST_WAIT_S:
                wait_s = FIRST_WAIT_S  # a stream that closes at once is not reopened every second
            silent_since = silent_since or context.now()
            if context.now() - silent_since > GIVE_UP_S:
                raise
            context.ledger.update_run(context.run_id, seen=Seen.UNKNOWN)
            context.emit(
                "seen", f"{error.message}; reconnecting in {wait_s:.0f} s. The training does not need this link"
            )
            context.disconnect()
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
