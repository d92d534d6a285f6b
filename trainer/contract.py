"""The contract between the trainer and the program that starts it: the files of a run folder and what they mean.

Standard library only and clean for Python 3.8: the agent takes a copy to machines with an old system Python.

Example, a run folder made by hand::

    config = RunConfig(data=DataConfig(train_files=("/data/train.bin",)), train=TrainConfig(steps=100, micro_batch=4))
    (Path("run") / "config.json").write_text(config.to_json())      # then: torchrun -m trainer run
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field

from trainer.config_tables import ContractError as ContractError
from trainer.config_tables import RateFactors, Stage, build
from trainer.task_config import SamplingConfig, TaskConfig

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"
LOG = "train.log"
EXIT = "exit.json"
STOP = "stop"
CHECKPOINTS = "checkpoints"
LATEST = "latest"
BEST = "best"

MODEL_FILE = "model.safetensors"
TRAINER_STATE_FILE = "trainer_state.pt"
META_FILE = "meta.json"
MANIFEST_FILE = "MANIFEST.json"
SAFE_FILE = "SAFE"
TEMPORARY_PREFIX = ".tmp-"
LEADS, ATTEMPT = "TRAINER_LEADS", "TRAINER_ATTEMPT"  # of nodes: "1" where rank 0 is; "2": its stop file is `stop-2`
HELD_DESCRIPTORS = "TRAINER_HELD_DESCRIPTORS"  # "5,6": open files (the agent's GPU locks) kept at a new start

# Names of the lines in events.jsonl ("event" key); every line also has "time" (UTC epoch seconds) and "step". A
# `validated` line has "val_loss", nats per token, and of a classifier "accuracy", a fraction.
EVENT_PREPARING = "preparing"  # what it does before the first step: "doing", in words
EVENT_STARTED = "started"
EVENT_RESUMED = "resumed"
EVENT_INITIALISED = "initialised"  # step 0, with the weights of "folder"
EVENT_VALIDATED = "validated"
EVENT_CHECKPOINTED = "checkpointed"
EVENT_MICRO_BATCH_REDUCED = "micro_batch_reduced"
EVENT_STOPPED = "stopped"
EVENT_FINISHED = "finished"
EVENT_FAILED = "failed"
EVENT_WARNING = "warning"
EVENT_SAMPLED = "sampled"
EVENT_EVALUATING = "evaluating"  # every 30 seconds of a long evaluation: "done" of "of" tokens
EVENT_EVALUATED = "evaluated"
"""The loss on one of the slices: "slice" [start, tokens], "loss" in nats per token, "perplexity", "tokens_sha256"."""
# Keys of a line in metrics.jsonl that readers may rely on.
METRIC_KEYS = ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_gib", "time")

MetricNumbers = typing.NamedTuple("MetricNumbers", [
    ("step", int), ("tokens", int), ("loss", typing.Optional[float]), ("tokens_per_second", typing.Optional[float]),
    ("mfu", typing.Optional[float]),
])  # fmt: skip
"""The numbers of a line that readers decide by. `loss` is None where it was not finite."""


def metric_line(value: object) -> typing.Optional[MetricNumbers]:
    """The line as numbers; None for a line without a step, or with another type at any of METRIC_KEYS."""
    if not isinstance(value, dict) or not all(_is_number(value.get(key)) for key in METRIC_KEYS):
        return None
    step, tokens = value.get("step"), value.get("tokens") or 0
    if not isinstance(step, int) or not isinstance(tokens, int) or step < 0:
        return None
    numbers = {key: value[key] for key in METRIC_KEYS if value.get(key) is not None and math.isfinite(value[key])}
    return MetricNumbers(step, tokens, numbers.get("loss"), numbers.get("tokens_per_second"), numbers.get("mfu"))


def _is_number(value: object) -> bool:
    """Null, or a number of a size that databases hold."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return value is None or isinstance(value, float) or whole


# "outcome" in exit.json. The process exits 0 for finished and stopped, 1 for failed.
OUTCOME_FINISHED = "finished"
OUTCOME_STOPPED = "stopped"
OUTCOME_FAILED = "failed"


class ManifestEntry(typing.TypedDict):
    """What MANIFEST.json says about one file of a checkpoint."""

    size_bytes: int
    sha256: str


class CheckpointMeta(typing.TypedDict, total=False):
    """meta.json of a checkpoint. The trainer writes every key; other writers may write fewer."""

    step: int
    total_steps: int
    tokens: int
    loss: float  # of the step's batch in training, nats per token
    val_loss: typing.Optional[float]  # nats per token; None where this step was not validated
    model: typing.Dict[str, typing.Any]  # the fields of ModelConfig
    tokenizer: str
    accuracy: float  # of a classifier, on its held-out examples
    task: typing.Dict[str, typing.Any]  # the fields of TaskConfig; absent where it is pre-training
    lineage: typing.Dict[str, typing.Any]  # RunConfig.lineage and "own_tokens", those since this run's first step
    time: float


class MetricLine(typing.TypedDict):
    """A line of metrics.jsonl. Loss in nats per token, `seconds` by part since the line before, `time` in UTC epoch."""

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    mfu: float
    memory_gib: float
    time: float
    skipped_steps: int
    clipped_share: float
    seconds: typing.Dict[str, float]


class ExitRecord(typing.TypedDict):
    """exit.json; `outcome` is one of the OUTCOME constants."""

    outcome: str
    step: int
    total_steps: int
    reason: str
    time: float


class Started(typing.TypedDict):
    """Fields of the event `started`."""

    total_steps: int
    parameters: int
    device: str
    ranks: int
    micro_batch: int
    accumulation: int
    torch: str
    compiled: bool
    compile_fault: str  # why it is not, although the config asks for it; else empty
    attention: str  # the kernel of scaled_dot_product_attention: flash, efficient, math or cpu


class SliceLoss(typing.TypedDict):
    """Fields of the event `evaluated`, and of a line of `python -m trainer.evaluate`. Two losses compare only where
    tokens_sha256, which names the predicted tokens, is equal."""

    slice: typing.List[int]  # first token and length
    tokens: int
    tokens_sha256: str
    loss: float
    perplexity: float
    bits_per_byte: typing.Optional[float]
    tokenizer: str


MicroBatchReduced = typing.TypedDict(  # the event `micro_batch_reduced`, in sequences; `from` is a keyword
    "MicroBatchReduced", {"event": str, "time": float, "step": int, "from": int, "to": int, "peak_gib": float}
)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and initialisation of a GPT-2 (pre-LayerNorm, learned positions, tanh GELU)."""

    vocab_size: int = 50257
    context_length: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    qkv_bias: bool = False
    bias: bool = True  # of the attention output and MLP projections, and of the LayerNorms
    tie_embeddings: bool = False
    init: str = "gpt2"
    """`gpt2`: std 0.02, residual projections scaled by 1/sqrt(2 n_layer). `torch`: framework defaults."""
    zero_init: bool = False
    """Residual projections, and a head that is not tied, start at zero."""
    rope: bool = False
    """Rotary positions in place of learned ones."""
    qk_norm: bool = False
    """Queries and keys have a root mean square of 1."""
    activation: str = "gelu"
    """Of the MLP: `gelu` (tanh) or `relu2`, ReLU squared."""
    value_residual: bool = False
    """Later blocks mix the first block's values into theirs, by a learned share each."""
    attention_out_bias: typing.Optional[bool] = None
    """Of the attention output alone; None: as `bias`."""
    experts: int = 0
    """MLPs of a block, of which a router picks active_experts for each token; 0: one MLP and no router."""
    active_experts: int = 2
    balance_loss: float = 0.01
    """Factor of the auxiliary loss that spreads tokens over the experts; the loss that is written leaves it out."""
    embedding_rank: int = 0  # columns through which tables over the vocabulary are products; 0: they are whole
    low_rank: str = "both"  # which of these tables: `input`, `output` or `both`


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens are, on the machine that trains. Files are memory-mapped, several are one stream."""

    train_files: typing.Tuple[str, ...] = ()
    validation_files: typing.Tuple[str, ...] = ()
    """Empty: the end of the training stream is held out."""
    start_token: int = 0
    tokens: typing.Optional[int] = None
    """Length of the training window in tokens; None: everything after start_token that is not held out."""
    order: str = "sequential"
    """`sequential` or `shuffled`; further epochs are always reshuffled."""
    validation_start_token: int = 0
    """Offset within validation_files; without such files the slice is the end of the training stream."""
    validation_tokens: int = 0
    """0 switches validation off. A slice held out of the training stream takes one token more: its last target."""
    tokenizer: str = "gpt2"  # only to decode samples: `bytes` (257 ids, no vocabulary download) or a tiktoken name
    dtype: typing.Optional[str] = None
    """`uint16` or `uint32`: that of headerless files, where the recipe vouches for them."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train. The global batch never depends on the machine; micro_batch does."""

    steps: int = 0
    global_batch: int = 96
    """Sequences per optimizer step over all ranks."""
    stages: typing.Tuple[Stage, ...] = ()
    """First parts of the training with another batch or shorter sequences; after the last, global_batch sequences of
    the model's context_length. Arithmetic: trainer/arithmetic/schedule.py."""
    micro_batch: int = 1
    """Sequences per forward pass of one rank; accumulation = global_batch / (micro_batch * ranks)."""
    optimizer: str = "adamw"
    """`adamw` or `muon` (Muon for the hidden matrices, AdamW for the rest)."""
    split_qkv: bool = False
    """Muon makes the query, key and value projections of a block orthogonal each by itself."""
    betas: typing.Tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    decay: str = "matrices"
    """`matrices`: weight decay on tensors with two dimensions or more; `all`: on every tensor."""
    learning_rate: float = 1.4e-3
    schedule: str = "cosine"
    """`constant`, `cosine`, `linear` or `wsd` (warmup, stable, decay)."""
    decay_fraction: float = 0.2
    """Of `wsd`: the last part of the steps after the warm-up, in which the rate falls (arXiv 2404.06395: 10-20 %)."""
    rate_factors: RateFactors = field(default_factory=RateFactors)
    warmup_fraction: float = 0.05
    min_learning_rate_fraction: float = 0.1
    grad_clip: typing.Optional[float] = None
    precision: str = "bf16"
    """`bf16`, `fp16` (with a gradient scaler), `fp32`. A card without bf16 trains in fp16, with a warning event."""
    tf32: bool = True
    compile: typing.Optional[bool] = None
    """None: on for CUDA, off on CPU."""
    require_compile: bool = False
    """Where it cannot be compiled, fail at the start: on a machine you pay for."""
    activation_checkpointing: bool = False
    parallel: str = "ddp"  # how ranks share: `ddp`, or `fsdp`, which cuts weights, gradients and optimizer state
    zero_stage: int = 0  # 1: a rank keeps the optimizer state of its share of the weights only (arXiv 1910.02054)
    reduce_dtype: str = "fp32"
    """Of gradients on their way between ranks: `fp32`, or `bf16` for half the traffic."""
    seed: int = 42
    log_every: int = 10
    checkpoint_every: int = 617
    validate_every: int = 617
    """Only validated checkpoints can become the best: set both equal, or one to a multiple of the other."""
    max_nonfinite_steps: int = 10  # in a row with non-finite gradients, after which the run fails
    skip_back: bool = False  # after that the next start goes back to a checkpoint before them, and skips their batches
    process_group_timeout_s: float = 600.0


@dataclass(frozen=True)
class RetentionConfig:
    """Which checkpoints are kept: best, the newest keep_last, and every keep_every steps (0: none)."""

    keep_last: int = 2
    keep_every: int = 0
    require_safe: bool = False
    """Delete only folders with a SAFE mark, unless the disk is too small for the next checkpoint."""


@dataclass(frozen=True)
class RunConfig:
    """config.json, with every value resolved."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    init_from: typing.Optional[str] = None  # a checkpoint folder: its weights alone, at step 0
    lineage: typing.Dict[str, typing.Any] = field(default_factory=dict)  # "source", "from_step", "before", "origin"
    resume_from: typing.Optional[str] = None
    """A checkpoint folder to continue from, unless the run has its own."""
    peak_flops_per_gpu: float = 0.0
    """Dense peak FLOP/s of this GPU in the chosen precision; 0: unknown."""
    device: str = "auto"
    """`auto`, `cuda` or `cpu`."""
    prompts: typing.Tuple[str, ...] = ()  # sampled once at the end by rank 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    slices: typing.Tuple[typing.Tuple[int, int], ...] = ()
    """Pairs of first token and length in the validation files, else in the training stream: measured after the end."""

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> RunConfig:
        """Parses config.json. Raises ContractError for invalid JSON, an unknown key or a wrong type."""
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ContractError("config.json is not JSON: %s" % error) from error
        return typing.cast(RunConfig, build(RunConfig, value, ""))


def checkpoint_name(step: int) -> str:
    """`step-000617`, the folder of that step under checkpoints/."""
    return "step-%06d" % step


def checkpoint_step(name: str) -> typing.Optional[int]:
    """The step of a checkpoint folder's name, or None for any other name (links, temporary folders)."""
    digits = name[len("step-") :]
    return int(digits) if name.startswith("step-") and digits.isascii() and digits.isdigit() else None


def kept_steps(
    steps: typing.Iterable[int], best: typing.Optional[int], retention: RetentionConfig
) -> typing.FrozenSet[int]:
    """The steps that retention keeps: best, the newest keep_last, every keep_every. The orchestrator uses it too."""
    known = sorted(set(steps))
    kept = set(known[-retention.keep_last :] if retention.keep_last > 0 else [])
    if retention.keep_every > 0:
        kept.update(step for step in known if step % retention.keep_every == 0)
    if best is not None and best in known:
        kept.add(best)
    return frozenset(kept)
