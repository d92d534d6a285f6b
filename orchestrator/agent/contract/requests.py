"""The shapes of what a caller asks of the agent, and of the jobs' specs and secrets.

The agent trusts none of it: it checks what it reads. Durations are seconds from now.

Example: `FollowRequest(run=run, job=JobName.TRAIN, digest=None, offsets={"metrics.jsonl": 4096})`
"""

from __future__ import annotations

from typing import Dict, List, TypedDict


class Watchdog(TypedDict, total=False):
    """When a training that makes no step is ended."""

    factor: float
    least_s: float
    first_step_s: float
    grace_s: float


class Notice(TypedDict):
    """Where a spot machine asks whether it is taken away."""

    url: str


class Part(TypedDict, total=False):
    """A stretch of a file that is pulled; `literal` and `before` are base64."""

    offset: int
    size_bytes: int
    destination: str
    sha256: str | None
    literal: str | None
    gap: bool
    before: str
    of_bytes: int | None


class PartSecret(TypedDict):
    """Where that part comes from."""

    url: str
    headers: Dict[str, str]


class StopRule(TypedDict):
    """An arm ends early whose val loss is more than `margin` above that of run `baseline`, from `step` on. `losses`:
    [step, val loss] of the baseline that its caller has, since it may have trained on a machine before this one."""

    baseline: str
    step: int
    margin: float
    losses: List[List[float]]


class QueueTerms(TypedDict, total=False):
    """What a training asks of the queue that it waits in. `needs_s`: the forecast of its training; `reserve_s`: what
    has to be left of the machine after it; `group_s`: how long all trainings of its group may take."""

    group: str
    arm: str
    needs_s: float
    reserve_s: float
    group_s: float
    disk_bytes: int
    on_failure: str
    stop: StopRule


class Cluster(TypedDict):
    """Of a training over several nodes: which of them this is, 0 the head; addresses and names of all in their order.
    Ranks meet at the head's `port`, supervisors at the one above it; `id` is of one start."""

    id: str
    node: int
    addresses: List[str]
    names: List[str]
    port: int


class JobSpec(TypedDict, total=False):
    """A job's order, which the machine stores: nothing secret. Fields by job: docs/reference/agent-protocol.md."""

    lease_s: float
    deadline_s: float | None
    gpus: List[str]
    pythonpath: str
    cwd: str
    # install
    visible: List[str]
    python: str | None
    candidates: List[str]
    requirements: List[str]
    torch: str
    env: str
    cuda: bool
    allow_build: bool
    elsewhere: bool
    # pull
    parts: List[Part]
    streams: int
    folder: str | None
    # meet: cluster
    # prepare, probe, evaluate
    argv: List[str]
    # train
    ranks: int
    attempt: int
    cluster: Cluster
    config: str
    threads_per_rank: int
    hold_s: float | None
    grace_s: float
    watchdog: Watchdog
    notice: Notice
    queue: QueueTerms
    restarts: int
    engine: str
    on_reboot: str
    keep_awake: bool
    # offload
    store: str
    then: str
    # keep
    host: str
    port: int
    user: str
    command: str


class StartRequest(TypedDict):
    job: str
    run: str
    digest: str
    spec: JobSpec
    secrets: Dict[str, object]


class _FollowRequest(TypedDict):
    run: str
    job: str
    digest: str | None
    offsets: Dict[str, int]


class FollowRequest(_FollowRequest, total=False):
    """`silence_s`: the reader keeps stdin open and sends newlines; silent for longer, it counts as gone."""

    silence_s: float


class EndCall(TypedDict):
    """The POST that ends the machine."""

    url: str
    body: Dict[str, object]


class Slot(TypedDict, total=False):
    """Signed URLs of one object in a store; a large one has `parts` and `complete` instead of `put`."""

    put: str
    parts: List[str]
    part_bytes: int
    complete: str
    get: str
    delete: str


class HubAccess(TypedDict):
    """A token that may write to one repository of the Hugging Face Hub."""

    endpoint: str
    repo: str
    token: str
    folder: str


class HomeAccess(TypedDict):
    """The line of authorized_keys that lets a home box in."""

    authorized: str


class StoreSecrets(TypedDict, total=False):
    """Secrets of the offload job: URLs, or `hub`, or `home`; good for `lasts_s`."""

    lasts_s: float
    probe: Slot
    index: Slot
    files: Dict[str, Slot]
    steps: Dict[str, Dict[str, Slot]]
    spare: Dict[str, Dict[str, Slot]]
    hub: HubAccess
    home: HomeAccess
