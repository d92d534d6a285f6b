"""A store for a run that began without one: its machine stores everything that it keeps, so that the bill need not go
on while a slow line brings that here. `fetch_store` of the host takes it by itself, or the one that you name.

Example: `begin(context, "s3://bucket/models")`; from then on the run is one with a `checkpoint_store`
"""

from __future__ import annotations

from orchestrator.core.errors import AgentError, GptctlError, ProviderError, UserError
from orchestrator.stages.checkpoints import store_job
from orchestrator.stages.checkpoints.slow_fetch import TooSlow
from orchestrator.stages.context import RunContext


def begin(context: RunContext, uri: str) -> None:
    """The machine stores what it keeps in `uri`, now and until its training has ended. Raises what the store or the
    machine says, and then the run is as it was; killed in between, gptctl begins again."""
    before, taken = context.host, {"checkpoint_store": uri, "fetch_store": None}
    context.host = before.model_copy(update=taken)
    try:
        store_job.start(context)
    except GptctlError:
        context.host = before
        raise
    context.ledger.update_run(context.run_id, host_data={**context.run.host_data, **taken})


def takes_over(context: RunContext, slow: TooSlow) -> bool:
    """Whether the host's `fetch_store` takes what is not here yet. One that cannot be begun with ends no fetch."""
    uri = context.host.fetch_store
    if uri is None:
        return False
    try:
        begin(context, uri)
    except (AgentError, ProviderError, UserError) as error:
        context.emit("warning", f"{slow}. {uri} cannot take it: {error.message}; fetching from the machine")
        return False
    context.emit("warning", f"{slow}: the machine stores its checkpoints in {uri} instead")
    return True
