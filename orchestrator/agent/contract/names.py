"""The words and durations that the agent and its callers share: verbs, jobs, states, codes, file names.

docs/reference/agent-protocol.md explains the verbs, docs/reference/troubleshooting.md the codes. Clean for Python 3.8.

Example::

    from orchestrator.agent.contract.names import Code
    if error.code == Code.NO_SUCH_RUN: ...
"""

from __future__ import annotations

GRACE_S = 300.0
"""How long a training may take to stop: it writes a last checkpoint."""
LEASE_S = 1800.0
"""How long a run, or a rented machine, continues without a caller and without progress."""
FINISH_WITHIN_S = 60.0
"""After `finish` the caller ends the machine; the guard does it this much later."""
COMPILE_WORKERS = 4
"""Processes in which one rank compiles; torch takes up to 32, each with the memory of a small Python."""
HEARTBEAT_S = 2.0
"""The agent sends a line at least this often while it follows or waits."""
PULSE_S = 2.0
"""How often a follower over SSH sends a sign of life to the agent."""
SILENCE_S = 10.0
"""A follower over SSH that the agent has not heard for this long is gone."""

SLURM_IS_SILENT = (
    r"unable to contact slurm|communication connection failure|socket timed out|connection refused"
    r"|zero bytes were transmitted|transport endpoint|could not establish a configuration"
)
"""What Slurm's commands say, in any case, when its controller does not answer: that is not a refusal."""


class Verb:
    """What a caller may ask for: `python3 agent-HASH.pyz VERB`."""

    WHERE = "where"
    FACTS = "facts"
    START = "start"
    ENQUEUE = "enqueue"
    QUEUE = "queue-order"
    STATUS = "status"
    FOLLOW = "follow"
    STOP = "stop"
    RENEW = "renew"
    ARM = "arm"
    FINISH = "finish"
    HOST_KEY = "host-key"
    MANIFEST = "manifest"
    SAFE = "safe"
    RELEASE = "release"


class JobName:
    """The jobs that the agent runs."""

    INSTALL = "install"
    PULL = "pull"
    MEET = "meet"
    PREPARE = "prepare"
    PROBE = "probe"
    TRAIN = "train"
    EVALUATE = "evaluate"
    OFFLOAD = "offload"
    KEEP = "keep"


JOB_NAMES = tuple(value for key, value in vars(JobName).items() if key.isupper())


class State:
    """The state of a job. `queued`: a training that waits for its turn. `started` is only in the answer to `start`;
    `lost`: it ended without an exit record."""

    NONE = "none"
    QUEUED = "queued"
    STARTED = "started"
    RUNNING = "running"
    LOST = "lost"
    ENDED = "ended"


class Outcome:
    """How a job ended: the trainer's outcomes, and three of the agent's own."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    LIMIT = "limit"
    PREEMPTED = "preempted"
    NEVER_STARTED = "never_started"


class StoreState:
    """What the offload job does; `needs-input` and `trouble` come with a `problem`."""

    STARTING = "starting"
    WAITING = "waiting"
    UPLOADING = "uploading"
    SAFE = "safe"
    TROUBLE = "trouble"
    NEEDS_INPUT = "needs-input"


class KeepState:
    """What a home box does to keep checkpoints."""

    CALLING = "calling"
    TROUBLE = "trouble"
    NEEDS_INPUT = "needs-input"


class GuardKind:
    """Who ends a rented machine from the machine itself."""

    NONE = "none"
    KEY_ON_BOX = "key-on-box"
    SELF = "self"


class BootWay:
    """How a training goes on after a reboot. `no-linger`: systemd is there, and does not start the user's units without
    a login."""

    SYSTEMD = "systemd"
    CRON = "cron"
    NO_LINGER = "no-linger"
    NONE = "none"


class LineKind:
    """The lines of `follow`; `stop` and `release` send heartbeats too."""

    DATA = "data"
    HEARTBEAT = "heartbeat"
    ENDED = "ended"


class Code:
    """Why the agent refuses. docs/reference/troubleshooting.md says what each means."""

    BAD_REQUEST = "bad-request"
    NO_SUCH_RUN = "no-such-run"
    NO_SUCH_JOB = "no-such-job"
    NO_SUCH_CHECKPOINT = "no-such-checkpoint"
    MANIFEST_DIFFERS = "manifest-differs"
    DIGEST_DIFFERS = "digest-differs"
    BAD_OFFSET = "bad-offset"
    NEEDS_INPUT = "needs-input"
    START_BUSY = "start-busy"
    NO_SUPERVISOR = "no-supervisor"
    NOT_ENDED = "not-ended"
    GPUS_TAKEN = "gpus-taken"
    GPUS_BUSY = "gpus-busy"
    CPU_TAKEN = "cpu-taken"
    BAD_LOCK = "bad-lock"
    BAD_GPU = "bad-gpu"
    NO_INTERPRETER = "no-interpreter"
    NO_GUARD = "no-guard"
    NO_TIMER = "no-timer"
    NO_TMPFS = "no-tmpfs"
    SOURCE_DENIED = "source-denied"
    SOURCE_CHANGED = "source-changed"
    SOURCE_WITHOUT_RANGES = "source-without-ranges"
    SOURCE_REFUSED = "source-refused"
    SOURCE_LOST = "source-lost"
    WRONG_BYTES = "wrong-bytes"
    DISK_FULL = "disk-full"
    READ_ONLY = "read-only"
    OS_ERROR = "os-error"


CODES = frozenset(value for key, value in vars(Code).items() if key.isupper())


class BootCode:
    """What is in the way before the agent runs; the laptop ships it, or explains."""

    AGENT_MISSING = "agent-missing"
    PYTHON_TOO_OLD = "python-too-old"
    NO_FOLDER = "no-folder"


class FileName:
    """Files of a job's folder, of the guard's and of a run's."""

    SPEC = "spec.json"
    STATE = "state.json"
    STOP = "stop.json"
    EXIT = "exit.json"
    RESULT = "result.json"
    REFUSAL = "refusal.json"
    HOLDING = "holding.json"
    NOTICE = "notice.json"
    STORE = "store.json"
    INDEX = "index.json"
    KEEP = "keep.json"
    ERROR = "error.json"
    PROGRESS = "progress.jsonl"
    LOG = "log"
    STARTS = "starts.jsonl"
    DEATHS = "deaths.jsonl"
    ENGINE = "engine.json"
    STARTED_FROM = "started_from.json"
    SUPERVISOR_LOG = "supervisor.log"
    START_LOCK = "start.lock"
    BOOT_HOOK = "boot-hook.json"
    ORDER = "order.json"
    LEASE = "lease.json"
