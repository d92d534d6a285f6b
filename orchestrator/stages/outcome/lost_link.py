"""A link that is lost in the middle of a stage: wait, connect again, and do the stage again, which does only what is
missing. So neither Wi-Fi that drops nor a laptop that sleeps ends `gptctl run`.

Silence says nothing about the machine; only its provider can say that it is gone. A machine that was silent from the
start of a stage is not waited for, but for one that trains: you are told at once what it may cost.

Example: `outlast(context, sync)`
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.core.errors import GptctlError, LinkLost, RemoteError, Unreachable
from orchestrator.core.states import Seen, State, is_forward
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.bounds import Stopped, pause
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.outcome import machine_gone, regroup

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
GIVE_UP_S = 600.0
TRAINING_GIVE_UP_S = 3600.0
"""For so long an attached gptctl tries to reach a silent machine before it leaves the run to `resume`."""


def outlast(context: RunContext, stage: Callable[[RunContext], None]) -> None:
    """Runs a stage, again after each loss of the link.

    Where the machine is gone, the run goes on without a node, or it was stopped meanwhile, the run's state says so.
    Raises Unreachable where the machine was silent from the start, Unreachable or LinkLost after so much silence that
    it is given up, and what else the stage raises.
    """
    before = context.run.state
    try:
        _again_and_again(context, stage)
    except (GptctlError, Stopped):
        if is_forward(State.ENDING, before) or not is_forward(State.ENDING, context.run.state):
            raise  # else it was stopped meanwhile, whatever became of this stage: the ending comes next


def _again_and_again(context: RunContext, stage: Callable[[RunContext], None]) -> None:
    wait_s, silent_since = FIRST_WAIT_S, None
    follows = context.stage == "follow"
    while True:
        began, state = context.now(), context.run.state
        try:
            return stage(context)
        except (LinkLost, Unreachable) as error:
            if _is_settled(context, state):
                return
            if silent_since is None and isinstance(error, Unreachable) and not follows:
                raise
            if context.now() - began > LONGEST_WAIT_S:
                wait_s = FIRST_WAIT_S  # a link that breaks at once is not opened every second
            if silent_since is None or _was_heard(context, began, error):
                silent_since = context.now()
            if context.now() - silent_since > (TRAINING_GIVE_UP_S if follows else GIVE_UP_S):
                raise
            _say(context, error, wait_s)
            context.disconnect()
            pause(context, wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _is_settled(context: RunContext, before: State) -> bool:
    """Whether nothing is left to wait for: `release --force` from another gptctl, a lost node that the run goes on
    without, or a machine that is gone."""
    if context.run.state != before and context.run.state == State.ENDING:
        return True
    if regroup.without_head(context):
        return True
    nodes = machine_gone.to_ask_about(context)
    asked = nodes if before != State.ENDING and context.provider.paid else ()
    if (gone := next(filter(boot.was_preempted, asked), None)) is not None:
        machine_gone.settle(context, gone)
        return True
    for node in nodes:
        boot.refresh_address(node)
    return False


def _was_heard(context: RunContext, began: float, error: RemoteError) -> bool:
    """Whether the machine answered in this try for long enough to have got on."""
    if (context.run.seen_at or 0.0) >= began:
        return True
    return isinstance(error, LinkLost) and context.now() - began > 2 * LONGEST_WAIT_S


def _say(context: RunContext, error: RemoteError, wait_s: float) -> None:
    context.ledger.update_run(context.run_id, seen=Seen.UNKNOWN)
    trains = context.run.state == State.TRAINING
    needless = ". The training does not need this link" if trains else ""
    context.emit("seen", f"{error.message}; reconnecting in {wait_s:.0f} s{needless}")
