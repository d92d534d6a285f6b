"""A run's folder: its files, the lines in them, and what they mean. The trainer writes them; everybody reads them.

Standard library only, clean for Python 3.8 and quick to import: the agent takes a copy to machines with an old system
Python, and reads it for every answer.

Example: `metric_line(json.loads(line))`        # MetricNumbers(step=50, tokens=819200, loss=4.1, ...), or None
"""

from __future__ import annotations

import math
import typing

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


def checkpoint_name(step: int) -> str:
    """`step-000617`, the folder of that step under checkpoints/."""
    return "step-%06d" % step


def checkpoint_step(name: str) -> typing.Optional[int]:
    """The step of a checkpoint folder's name, or None for any other name (links, temporary folders)."""
    digits = name[len("step-") :]
    return int(digits) if name.startswith("step-") and digits.isascii() and digits.isdigit() else None


class Retention(typing.NamedTuple):
    """Which checkpoints are kept: best, the newest keep_last, and every keep_every steps (0: none)."""

    keep_last: int = 2
    keep_every: int = 0

    def kept(self, steps: typing.Iterable[int], best: typing.Optional[int]) -> typing.FrozenSet[int]:
        """The steps among these that are kept. The trainer, the agent and the store go by it."""
        known = sorted(set(steps))
        found = set(known[-self.keep_last :] if self.keep_last > 0 else [])
        if self.keep_every > 0:
            found.update(step for step in known if step % self.keep_every == 0)
        if best is not None and best in known:
            found.add(best)
        return frozenset(found)
