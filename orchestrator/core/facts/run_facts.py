"""What is known about a run besides its row: what you agreed to, and what each stage found out for the next ones.

Nothing here is a secret. The keys in the ledger are those of earlier versions. A value of a wrong type counts as
unknown, so that a machine can always be released; keys of a later version are ignored here and kept in the ledger.

Example: `RunFacts.from_json({"python": "/usr/bin/python3", "torch": "2.9.1"}).prepared`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.checkpoints.store_state import StoreState
from orchestrator.core.config.home_box import HomeBox
from orchestrator.core.facts.origin import Origin
from orchestrator.core.planning.plan import Plan
from orchestrator.core.ports import StoredFile
from orchestrator.core.typed_json import decode, encode, flat, stored_as


@dataclass(frozen=True)
class ResumeFrom:
    """The checkpoint of --resume-from: its folder here or its URI, and its files with the digests they must have."""

    place: str = field(metadata=stored_as("resume_from"))
    step: int = field(default=0, metadata=stored_as("resume_step"))
    files: Mapping[str, FileEntry] = field(default_factory=dict, metadata=stored_as("resume_files"))


@dataclass(frozen=True)
class Prepared:
    """The machine as `provision` left it: the interpreter that trains, and the devices it trains on."""

    python: str
    torch: str = ""
    boot_id: str | None = None
    driver: str | None = None
    cpus: int = 1
    gpus: tuple[str, ...] = ()
    """UUIDs; empty on a CPU machine."""


@dataclass(frozen=True)
class Software:
    """What a training runs on; None for what the machine does not say."""

    image: str | None = None
    os: str | None = None
    kernel: str | None = None
    driver: str | None = None
    python: str | None = None
    torch: str | None = None


@dataclass(frozen=True)
class DatasetFacts:
    """The dataset, for the run's record and the model card. `documents` only where gptctl prepared it."""

    train_tokens: int | None = None
    validation_tokens: int | None = None
    digest: str | None = None
    documents: int | None = None
    overlap: str | None = None
    """What it was checked against for shared documents, and what came out; None: it was not checked."""
    mixture: str | None = None
    """What each source of a mixture gave, in words."""


@dataclass(frozen=True)
class CutFile:
    """A file on this computer with the part of the data that the run reads."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class StagedFacts:
    """What goes to the machine, and what vouches for it: `data` in status and report."""

    source: str
    needed_bytes: int
    pulled_bytes: int
    verified_by: str


@dataclass(frozen=True)
class DataOnMachine:
    """Where the tokens are on the machine, and what of them is read: fields of the trainer's DataConfig."""

    train_files: tuple[str, ...]
    validation_files: tuple[str, ...] = ()
    validation_start_token: int = 0
    validation_tokens: int = 0
    window: tuple[int, int | None] | None = None
    """First token and length of the training window, where the files are cut; None: the recipe's."""


@dataclass(frozen=True)
class Synced:
    """What `sync` left on the machine."""

    source: str
    """PYTHONPATH of the trainer there."""
    data: DataOnMachine
    resume_from_there: str | None = None
    """The folder of the checkpoint to resume from."""
    init_from_there: str | None = None
    """The folder of the weights to begin with."""


@dataclass(frozen=True)
class PeerFacts:
    """What provision and sync found out about another node of the run."""

    prepared: Prepared | None = None
    synced: Synced | None = None


@dataclass(frozen=True)
class Cluster:
    """How the nodes of a run meet: their addresses on their own network, the head's first, and the port there."""

    addresses: tuple[str, ...]
    port: int
    mb_per_s: float = 0.0
    """The slowest link between two of them, as measured."""


@dataclass(frozen=True)
class LostNodes:
    """Nodes that the run lost and goes on without, or has others for."""

    attempt: int = 1
    """Which order of the training its machines have: those of another do not hear each other."""
    names: tuple[str, ...] = ()
    times: int = 0
    """How often it went on; `train.restarts` bounds it."""
    lost_steps: int = 0
    """Steps that were trained and had to be trained again."""
    since: float | None = None
    """When the last one was lost (UTC epoch seconds): another machine is looked for from then on."""
    unfit: int = 0
    """How many were lost since it last trained: most of them machines in place of others that could not be used."""
    head_moved: bool = False
    """Whether the last was the head: what the run is made of comes to the new one first."""


@dataclass(frozen=True)
class StoreUrls:
    """When the machine got its URLs for the store (UTC epoch seconds), and for how long they are good."""

    made_at: float
    lasts_s: float


@dataclass(frozen=True)
class EarlyStop:
    """An arm ends early whose val loss is more than `margin` above that of the run `baseline`, from `step` on."""

    baseline: str
    step: int
    margin: float


@dataclass(frozen=True)
class QueueFacts:
    """That the run may wait for its turn on a machine, and how that goes."""

    group: str | None = None
    """The sweep it belongs to."""
    arm: str | None = None
    on_failure: str = "skip"
    stop: EarlyStop | None = None
    group_s: float | None = None
    """How long all trainings of the group may take together; None: the machine's own deadline is their end."""
    ahead: int | None = None
    """How many waiting trainings come first, as last seen; None: it does not wait (yet, or any more)."""
    has_started: bool = False
    skew_s: float = 0.0
    """How far the machine's clock is ahead of this computer's."""


@dataclass(frozen=True)
class Recovery:
    """That the run goes on by itself on another machine when its provider takes one away, and how that went so far."""

    most: int = 0
    """Interruptions at most."""
    on_demand: Mapping[str, float] = field(default_factory=dict)
    """Machine types that may be rented on demand too, and the USD per hour that you agreed to."""
    interruptions: int = 0
    fruitless: int = 0
    """Interruptions in a row without a new checkpoint."""
    lost_steps: int = 0
    """Steps that were trained and had to be trained again."""


@dataclass(frozen=True)
class EngineFacts:
    """The run's jobs with an engine such as Slurm, and the newest of them as last seen."""

    jobs: tuple[str, ...] = ()
    """Their ids, the newest last."""
    element: str = ""
    """Of a run of a sweep: its element, `NAME_2`, of the job with that name; dealt before that is submitted."""
    phase: str = ""
    state: str = ""
    """In the engine's own word."""
    reason: str = ""
    starts_at: float | None = None
    starts: int = 0
    """How often they were started, by the engine's books, which the next two are from."""
    gpu_hours: float | None = None
    node_hours: float = 0.0


@dataclass(frozen=True)
class RunFacts:
    """Every key that a run keeps beside its row. None: not known yet."""

    made_by: str = ""
    """The gptctl that made the run, with its version."""
    accept_new_host_key: bool = False
    wait: bool = False
    """You asked to wait for capacity."""
    abandon: bool = False
    """You asked to give the machine back without fetching anything."""
    resume_from: ResumeFrom | None = field(default=None, metadata=flat)
    init_from: ResumeFrom | None = None
    """The checkpoint of `model.init_from`: its weights alone."""
    origin: Origin | None = None
    """Where its first weights come from; None: it began from random ones."""
    home_boxes: tuple[HomeBox, ...] = ()
    alternatives: tuple[Plan, ...] = ()
    """Plans on other machine types that you agreed to."""
    prepared: Prepared | None = field(default=None, metadata=flat)
    software: Software | None = None
    dataset: DatasetFacts | None = None
    data_listed: tuple[StoredFile, ...] = ()
    """The source's files when the run first listed them."""
    validation_listed: tuple[StoredFile, ...] | None = None
    """Those for validation, which `data.validation.source` may have named."""
    data_cut: Mapping[str, CutFile] = field(default_factory=dict)
    """By the identity of the staged file."""
    staged: StagedFacts | None = None
    synced: Synced | None = field(default=None, metadata=flat)
    peers: tuple[PeerFacts, ...] = ()
    """Of the nodes after the head."""
    cluster: Cluster | None = None
    lost_nodes: LostNodes = LostNodes()
    store: StoreState | None = None
    store_urls: StoreUrls | None = None
    queue: QueueFacts | None = None
    """None: you did not agree to wait."""
    recovery: Recovery | None = None
    """None: you decide what follows when its machine is taken away."""
    engine: EngineFacts = EngineFacts()
    """Its jobs, where an engine runs it."""
    deaths: int = 0
    """How often its training died and started again, as far as was said."""
    exit: Mapping[str, object] | None = None
    """The training's exit record, as the machine wrote it."""
    needs_resume: str = ""
    """Why it waits for `gptctl resume`, as last seen while no gptctl followed it."""
    driven_by: str | None = None
    """The host whose gptctl drives it, so that this ledger does not; None: this one does."""
    driver_token: int = 0
    """Counts its handovers: of two ledgers, the one with the higher number is right."""
    forgotten_at: float | None = None
    """When you took it out of the lists, and its files away; what it cost stays."""

    def to_json(self) -> dict[str, object]:
        """What the ledger stores; unknown facts are omitted."""
        return {key: value for key, value in encode(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: object) -> RunFacts:
        """The facts of a stored object; missing keys and wrong types count as unknown."""
        return decode(cls, value, lenient=True)


class RunFactChanges(TypedDict, total=False):
    """The keywords of set_run_facts: fields of RunFacts."""

    made_by: str
    accept_new_host_key: bool
    wait: bool
    abandon: bool
    resume_from: ResumeFrom | None
    init_from: ResumeFrom | None
    origin: Origin | None
    home_boxes: tuple[HomeBox, ...]
    alternatives: tuple[Plan, ...]
    prepared: Prepared | None
    software: Software | None
    dataset: DatasetFacts | None
    data_listed: tuple[StoredFile, ...]
    validation_listed: tuple[StoredFile, ...] | None
    data_cut: Mapping[str, CutFile]
    staged: StagedFacts | None
    synced: Synced | None
    peers: tuple[PeerFacts, ...]
    cluster: Cluster | None
    lost_nodes: LostNodes
    store: StoreState | None
    store_urls: StoreUrls | None
    queue: QueueFacts | None
    recovery: Recovery | None
    engine: EngineFacts
    deaths: int
    exit: Mapping[str, object] | None
    needs_resume: str
    driven_by: str | None
    driver_token: int
    forgotten_at: float | None
