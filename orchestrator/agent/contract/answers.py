"""The shapes of what the agent answers, line by line.

Optional keys stand in a class with `total=False`, because Python 3.8 has no other way. An answer may have more keys
than are listed here; a caller ignores those it does not know, and checks all others against these shapes.

Example: `StartAnswer(job="train", run=run, state=State.STARTED, digest=digest, exit=None)`
"""

from __future__ import annotations

from typing import Dict, List, TypedDict


class Failure(TypedDict):
    """A refusal in words: `code` for programs, `message` and `hint` for people."""

    code: str
    message: str
    hint: str


class RefusalLine(TypedDict):
    """The last line of a call that the agent refuses."""

    error: Failure


class Where(TypedDict):
    """Answer to `where`."""

    root: str


class Lease(TypedDict):
    """Seconds as of now, negative when over. No deadline: None."""

    left_s: float
    deadline_left_s: float | None


class LeaseAnswer(TypedDict):
    """Answer to `renew`."""

    lease: Lease | None


class _GuardStatus(TypedDict):
    kind: str
    armed: bool


class GuardStatus(_GuardStatus, total=False):
    """What ends this machine: `left_s` until it acts as things stand, `lease_left_s` before that it does not,
    `deadline_left_s` until it acts whatever happens. `holding`: checkpoints to fetch. Kind `none` has none of these."""

    ends_at: float | None
    left_s: float | None
    lease_left_s: float | None
    deadline_left_s: float | None
    holding: int
    ending: bool
    problem: str | None
    timer_left_s: float | None
    by: str


class GuardAnswer(TypedDict):
    """Answer to `arm` and `finish`."""

    guard: GuardStatus


class Death(TypedDict):
    """A training that died: at `step` of the start from `from_step`. `pause_s`: how long until it started again; None:
    it did not."""

    number: int
    from_step: int
    step: int
    reason: str
    at: float
    pause_s: float | None


class Pair(TypedDict):
    """What a node measured with another: round trip, bytes sent per second, how far the other's clock is ahead."""

    node: int
    ms: float
    mb_per_s: float
    clock_s: float


class NoPair(TypedDict):
    """A node that was not reached."""

    node: int
    error: str


class Meeting(TypedDict):
    """The result of the job `meet`."""

    pairs: List[Pair]
    missing: List[NoPair]


class _ExitRecord(TypedDict):
    code: int | None
    signal: str | None
    outcome: str
    reason: str
    started_at: float | None
    ended_at: float
    duration_s: float | None
    error: object
    trainer: Dict[str, object] | None
    result: Dict[str, object] | None


class ExitRecord(_ExitRecord, total=False):
    """How a job ended. `code` is its program's; `refusal`: why one of the agent's own failed (version 0.1 has it in
    `last_lines`, which a status omits). `lost`: nodes that fell silent, or that their provider takes away."""

    last_lines: List[str]
    refusal: Failure | None
    deaths: List[Death]
    lost: List[int]


class StartAnswer(TypedDict):
    job: str
    run: str
    state: str
    digest: str
    exit: ExitRecord | None


class QueueEntry(TypedDict):
    """A training that waits."""

    run: str
    added_at: float
    arm: str | None
    group: str | None
    needs_s: float | None


class QueueAnswer(TypedDict):
    """Answer to `queue-order`: what waits, the next one first; `alive`: whether its process runs."""

    queue: List[QueueEntry]
    alive: bool


class StopAnswer(TypedDict):
    state: str
    exit: ExitRecord | None


class ReleaseAnswer(TypedDict):
    released: bool
    ended: List[str]


class JobState(TypedDict):
    """What is known of a job: `pid` is its program's; `supervised`: a supervisor of it lives."""

    state: str
    supervised: bool
    pid: int | None
    started_at: float | None
    exit: ExitRecord | None


class JobStatus(JobState):
    """A job's entry of `status`; `starts` counts its processes, `attempt` (0: not a training) its orders."""

    job: str
    digest: str
    starts: int
    attempt: int


class _StoreStatus(TypedDict):
    state: str
    problem: str | None
    safe: List[int]
    probed: bool


class StoreStatus(_StoreStatus, total=False):
    """The offload job: `step` is the checkpoint on its way, `finished`: everything is stored, `passes`: waiting may
    mend the problem."""

    step: int
    passes: bool
    store: str | None
    finished: bool


class KeepStatus(TypedDict):
    """The keep job, on a home box."""

    state: str
    problem: str | None
    at: float


class Taken(TypedDict):
    """The provider takes the machine away: at `time` as it said, in `left_s`."""

    action: str
    time: str | None
    left_s: float


class SpotNotice(TypedDict):
    taken: Taken | None
    warning: str | None
    at: float


class HeldCheckpoint(TypedDict):
    step: int
    verified: bool


class Holding(TypedDict):
    """After the end of a training: the kept checkpoints on the machine."""

    checkpoints: List[HeldCheckpoint]


class RunStatus(TypedDict):
    """A run's entry of `status` and of each heartbeat of `follow`. `metrics`: the last good line of metrics.jsonl, for
    trainer.contract.metric_line. `ahead`: how many trainings wait before it; None: it does not wait."""

    jobs: Dict[str, JobStatus]
    lease: Lease | None
    guard: GuardStatus
    step: int | None
    metrics: Dict[str, object] | None
    checkpoints: List[int]
    latest: int | None
    best: int | None
    safe: List[int]
    store: StoreStatus | None
    keep: KeepStatus | None
    holding: Holding | None
    sizes: Dict[str, int]
    notice: SpotNotice | None
    ahead: int | None
    deaths: List[Death]
    warnings: List[str]


class MachineStatus(TypedDict):
    """Answer to `status`."""

    runs: Dict[str, RunStatus]
    guard: GuardStatus
    time_s: float


class DataLine(TypedDict):
    """Bytes of a followed file, base64, from `offset` on."""

    kind: str
    file: str
    offset: int
    data: str


class HeartbeatLine(TypedDict):
    """Those of `stop` and `release` have no `status`, and nobody reads them."""

    kind: str
    time_s: float
    status: RunStatus


class EndedLine(TypedDict):
    kind: str
    exit: ExitRecord


class PromisedFile(TypedDict):
    """A file of a checkpoint as its manifest promises it."""

    size_bytes: int
    sha256: str


class _CheckpointEntry(TypedDict):
    step: int
    name: str
    files: Dict[str, PromisedFile]
    manifest_sha256: str
    manifest_size_bytes: int
    safe: bool


class CheckpointEntry(_CheckpointEntry, total=False):
    """A complete checkpoint on the machine; `kept`: retention keeps it."""

    kept: bool
    best: bool
    latest: bool


class Manifest(TypedDict):
    """Answer to `manifest`."""

    checkpoints: List[CheckpointEntry]
    files: Dict[str, int]


class PullResult(TypedDict):
    """What the pull job brought: files by their absolute path."""

    files: Dict[str, PromisedFile]


class ProbeResult(TypedDict):
    """What the probe of the trainer found; it has more keys."""

    micro_batch: int
    tokens_per_second: float


class SafeAnswer(TypedDict):
    step: int
    safe: bool


class _HostKey(TypedDict):
    changeable: bool


class HostKey(_HostKey, total=False):
    """A new host key of the machine's sshd; not changeable: `why` instead of `public` and `file`."""

    public: str
    file: str
    why: str


class HostKeyAnswer(TypedDict):
    host_key: HostKey
