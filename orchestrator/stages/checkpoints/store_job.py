"""Offload: the machine stores its checkpoints itself, with URLs that are made here, or a token of the Hub's, which
travel by stdin; or along the line of a home box (keeper.py).

Started before the training, and not left alone before the machine has put an object into the store and got it back.
Handing over URLs again renews them. No byte of a checkpoint comes through here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Required, TypedDict

from orchestrator.agent.contract.answers import RunStatus
from orchestrator.agent.contract.names import JobName
from orchestrator.core.checkpoints import store_index, store_places
from orchestrator.core.errors import (
    AgentError,
    GptctlError,
    MachineUnfit,
    ProviderError,
    RemoteError,
    StorageError,
    UserError,
)
from orchestrator.core.facts.run_facts import StoreUrls
from orchestrator.core.ports import StoredFile, Upload
from orchestrator.stages.checkpoints import home_box_job
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline
from orchestrator.stages.machine.bounds import pause
from orchestrator.stages.machine.reported import record_store
from orchestrator.stores import hub_repository

PROBED_WITHIN_S = 60.0
LOOK_EVERY_S = 0.5
TROUBLE_S = 60.0
"""For how long a store may be in trouble before what it lacks is fetched from the machine."""
LONG_S = 366 * 86_400.0
"""A token of the Hub ends when its owner says so, which the Hub tells the machine; a home box's key with the run."""
RENEW_BEFORE = 0.5
"""Of their life: the gptctl that follows renews older URLs."""


Slot = dict[str, object]
"""URLs to put, get and delete one object; agent/checkpoints/store_access.py reads them."""


class JobSecrets(TypedDict, total=False):
    """What the store job gets by stdin: URLs, or the access of a home box or of a Hub repository."""

    lasts_s: Required[float]
    """For how long all of it is good."""
    home: dict[str, str]
    hub: Mapping[str, object]
    probe: Slot
    index: Slot
    files: dict[str, Slot]
    steps: dict[str, dict[str, Slot]]
    spare: dict[str, dict[str, Slot]]


def wanted(context: RunContext) -> bool:
    """Whether this run's host has a store."""
    return context.host.checkpoint_store is not None


def uri(context: RunContext) -> str:
    """Where this run's checkpoints are stored."""
    return store_places.run_uri(context.host.checkpoint_store or "", context.run_id)


def start(context: RunContext, *, again: bool = False) -> None:
    """Hands over URLs: to a new job, or to the one that runs, for which they are new ones. again: a home box that is
    away now is left alone."""
    if not home_box_job.wanted(context):
        return _start_job(context, urls(context))
    call = home_box_job.new_call(context)
    _start_job(context, {"home": {"authorized": call.authorized}, "lasts_s": LONG_S})
    (home_box_job.start_again if again else home_box_job.start)(context, call)


def _start_job(context: RunContext, secrets: JobSecrets) -> None:
    spec = {"store": uri(context), "then": "hold" if context.run.keep else "end"}
    context.agent.start(JobName.OFFLOAD, context.run_id, uri(context), spec, secrets)
    context.set_run_facts(store_urls=StoreUrls(context.now(), secrets["lasts_s"]))


def require(context: RunContext) -> None:
    """Returns once the machine itself has written to the store and read back. A store that is away for a while is
    waited for; where this machine trained with it before, the training begins meanwhile, and what it keeps is stored
    later. Raises MachineUnfit."""
    if not wanted(context):
        return
    try:
        start(context)
    except RemoteError as error:
        raise MachineUnfit(f"launch: {uri(context)}: {error.message}", error.hint) from error
    until = time.monotonic() + PROBED_WITHIN_S
    while True:
        state = context.agent.status(context.run_id)["runs"][context.run_id]["store"]
        problem = state["problem"] if state is not None else None
        if state is not None and state["probed"]:
            return
        passes = state is not None and state.get("passes", False)
        if problem and passes and _was_there(context):
            context.emit("warning", f"the store: {problem} (the machine tries again, and trains meanwhile)")
            return
        if (problem and not passes) or time.monotonic() > until:
            raise MachineUnfit(
                f"launch: {context.host.name} cannot store checkpoints in {uri(context)}: {_why_not(context, problem)}",
                "nothing was trained; correct the bucket's policy, its quota or checkpoint_store, and run again",
            )
        pause(context, 0.2)


def _was_there(context: RunContext) -> bool:
    """Whether another run trained on this machine with the same store: none does before it could write there."""
    here = context.rental.id if context.provider.paid else None  # a machine of your own has a rental for each run
    return any(
        run.host_data.get("checkpoint_store") == context.host.checkpoint_store and context.ledger.attempts(run.id)
        for run in context.ledger.runs(rental_id=here, host=context.rental.host)
        if run.id != context.run_id
    )


def _why_not(context: RunContext, problem: str | None) -> str:
    said = problem or "no answer from the store"
    box = home_box_job.problem(context) if home_box_job.wanted(context) else ""
    return f"{said} (it says: {box})" if box else said


def urls(context: RunContext) -> JobSecrets:
    """The secrets of the job; see agent/checkpoints/store_access.py for what is in them."""
    place, plan, recipe = uri(context), context.plan, context.recipe
    if place.startswith("hf://"):
        return {"hub": hub_repository.access(place), "lasts_s": LONG_S}
    sizes = store_index.file_sizes(recipe.model.config(), recipe.train.optimizer)
    every = recipe.train.checkpoint_every
    steps = [name for name in store_index.planned_folders(plan.steps, every) if _is_to_come(context, name)]
    spare = store_index.spare_folders()
    logs = dict.fromkeys(store_index.LOGS, 256 << 20)
    grants = Grants(context, place)
    return {
        "probe": grants.slot("probe", store_index.SMALL_BYTES),
        "index": grants.slot(store_index.INDEX, store_index.SMALL_BYTES),
        "files": grants.slots("", logs),
        "steps": {name: grants.slots(name, sizes) for name in steps},
        "spare": {name: grants.slots(name, sizes) for name in spare},
        "lasts_s": grants.lasts_s,
    }


def _is_to_come(context: RunContext, name: str) -> bool:
    """Not yet stored; the newest few stay, since retention takes them from the store one day."""
    last = context.run.safe_step or 0
    every, train = context.recipe.train.checkpoint_every, context.recipe.train
    step = int(name.rpartition("-")[2])
    if step <= context.plan.from_step:
        return False  # of the run it resumes from
    return step > last - every * (train.keep_last + 2) or bool(train.keep_every)


class Grants:
    """Makes URLs for objects below one folder, and remembers when the first of them ends."""

    def __init__(self, context: RunContext, place: str) -> None:
        self.storage = context.storage(place)
        self.place = place
        self.now = context.now()
        self.lasts_s = store_index.GRANT_S

    def slot(self, name: str, size_bytes: int) -> Slot:
        return self.slots("", {name: size_bytes})[name]

    def slots(self, folder: str, sizes: Mapping[str, int]) -> dict[str, Slot]:
        """File name to slot, for files in `folder`."""
        place = f"{self.place}/{folder}".rstrip("/")
        files = [StoredFile(name, size) for name, size in sizes.items()]
        uploads = self.storage.upload_plan(place, files, store_index.GRANT_S)
        return {each.name: self._slot(f"{place}/{each.name}", each) for each in uploads}

    def _slot(self, address: str, upload: Upload) -> Slot:
        back = self.storage.download_plan(address, "", 0, 1, store_index.GRANT_S)
        for each in (back, *upload.puts):
            if each.expires_at is not None:
                self.lasts_s = min(self.lasts_s, each.expires_at - self.now)
        slot: Slot = {"get": back.url}
        if upload.remove_url is not None:
            slot["delete"] = upload.remove_url
        if upload.complete_url is None:
            return {**slot, "put": upload.puts[0].url}
        parts = [each.url for each in upload.puts]
        return {**slot, "parts": parts, "part_bytes": upload.puts[0].size_bytes, "complete": upload.complete_url}


def look_after(context: RunContext, status: RunStatus) -> None:
    """With every heartbeat: what the store has is noted, and URLs that are half over, or lost, are made again."""
    if not wanted(context):
        return
    store = status["store"]
    record(context, status)
    made = context.facts.store_urls or StoreUrls(0.0, 0.0)
    age_s = context.now() - made.made_at
    # A home box that does not call may have been restarted: it gets another key.
    lost = store is not None and store["state"] in _helpless(context) and age_s > PROBED_WITHIN_S
    if store is not None and (lost or age_s > RENEW_BEFORE * made.lasts_s):
        with suppress(AgentError):
            start(context, again=True)


def _helpless(context: RunContext) -> tuple[str, ...]:
    """States of the store that only this side can end."""
    return ("needs-input", "trouble") if home_box_job.wanted(context) else ("needs-input",)


def record(context: RunContext, status: RunStatus) -> None:
    """Records what the machine reports of its store, if that is news."""
    problem = record_store(context.ledger, context.run, context.host.checkpoint_store, status)
    if problem:
        context.emit("warning", f"the store: {problem} (the machine tries again)")


def settle(context: RunContext) -> frozenset[int]:
    """Waits while the machine stores all that is kept, and returns the steps that are in the store."""
    if not wanted(context):
        return frozenset()
    if not _is_finished(context):
        with suppress(AgentError, ProviderError, UserError):  # the URLs it has may do
            start(context, again=True)
    trouble = _Trouble()
    while True:
        status = context.agent.status(context.run_id)["runs"][context.run_id]
        state = status.get("store")
        if state is None:
            return frozenset()
        record(context, status)
        if state.get("finished"):
            return frozenset(state["safe"])
        if trouble.lasts_s(state["state"]) > TROUBLE_S:
            context.emit("warning", f"{uri(context)}: {state['problem']}; fetching from the machine instead")
            return frozenset(state["safe"])
        context.emit("progress", what=JobName.OFFLOAD, text=f"storing checkpoints in {uri(context)}")
        deadline.extend(context)
        time.sleep(LOOK_EVERY_S)


def _is_finished(context: RunContext) -> bool:
    store = context.agent.status(context.run_id)["runs"][context.run_id]["store"]
    return store is not None and store.get("finished", False)


class _Trouble:
    """For how long a store has been in trouble. Between two tries it says something else for a while."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.last_s = 0.0

    def lasts_s(self, state: str) -> float:
        """0 while it is well, and again once it has been for half of TROUBLE_S."""
        now = time.monotonic()
        if state in ("trouble", "needs-input"):
            self.first_s, self.last_s = self.first_s or now, now
        elif now - self.last_s > TROUBLE_S / 2:
            self.first_s = None
        return now - self.first_s if self.first_s is not None else 0.0


def index(context: RunContext) -> store_index.StoreIndex | None:
    """What the store itself says of this run; None where it says nothing or cannot be asked."""
    if not wanted(context):
        return None
    try:
        return read_index(context, uri(context))
    except GptctlError as error:
        if not (isinstance(error, StorageError) and error.missing):
            context.emit("warning", f"{uri(context)} does not answer: {error.message}")
        return None


def read_index(context: RunContext, place: str) -> store_index.StoreIndex:
    """Raises StorageError (`missing`) where there is none."""
    content = context.storage(place).read(f"{place}/{store_index.INDEX}", 0, store_index.MOST_INDEX_BYTES)
    return store_index.read_index(content, place)
