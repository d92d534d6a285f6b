"""Turns what the trainer reports about a checkpoint into what the ledger keeps: slices, multiple choice, samples.

It must neither measure nor write: the report stage and `gptctl eval` do.

    for evaluation in from_events(run.id, read_lines(mirror / "events.jsonl")):
        ledger.add_evaluation(evaluation)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.ledger.records import Evaluation
from orchestrator.report.judged import JUDGE, scores_of
from trainer.run_files import EVENT_EVALUATED, EVENT_SAMPLED

SLICE, CHOICES, SAMPLE = "slice", "choices", "sample"


def from_events(run_id: str, events: Iterable[Mapping[str, object]]) -> Iterator[Evaluation]:
    """What the trainer measured and wrote at the end of a training, from its events."""
    for event in events:
        step, time = event.get("step"), event.get("time")
        if not isinstance(step, int) or not isinstance(time, int | float):
            continue
        if event.get("event") == EVENT_EVALUATED:
            found = from_line(run_id, step, {"kind": SLICE, **event}, float(time))
            if found is not None:
                yield found
        elif event.get("event") == EVENT_SAMPLED:
            yield sampled(run_id, step, {"prompt": event.get("prompt"), "text": event.get("text")}, float(time))


def from_line(run_id: str, step: int, line: Mapping[str, object], time: float) -> Evaluation | None:
    """A line of `trainer.evaluate`; None for one that is not a result (a NaN loss is a result, without a loss)."""
    known = ((key, value) for key, value in line.items() if key not in ("kind", "event", "step", "time"))
    # JSON has neither NaN nor infinity: loss and perplexity of a model that has diverged are null.
    result = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in known}
    loss = result.get("loss")
    known_loss = float(loss) if isinstance(loss, int | float) and not isinstance(loss, bool) else None
    part = line.get("slice")
    if line.get("kind") == SLICE and isinstance(part, list) and len(part) == 2:
        name = "{}+{}".format(*part)
        return Evaluation(run_id, step, SLICE, name, time, known_loss, result)
    if line.get("kind") == CHOICES and isinstance(line.get("accuracy"), int | float):
        return Evaluation(run_id, step, CHOICES, str(line.get("name")), time, None, result)
    return None


def sampled(run_id: str, step: int, result: Mapping[str, object], time: float) -> Evaluation:
    """A text, named by its prompt and settings: the same again is the same sample."""
    settings = {key: value for key, value in result.items() if key != "text"}
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return Evaluation(run_id, step, SAMPLE, name, time, None, dict(result))


@dataclass(frozen=True)
class EvaluationRow:
    """A slice, a multiple choice or a judge's scores: what report.json, status and the model card have of it."""

    step: int
    kind: str
    name: str
    loss: float | None
    """Nats per token, of a slice."""
    result: Mapping[str, object]
    """The keys that KEYS has for its kind."""
    measured_at: float

    def to_json(self) -> dict[str, object]:
        """With the result's keys beside the others."""
        left = {"step": self.step, "kind": self.kind, "name": self.name, "loss": self.loss}
        return {**left, **self.result, "measured_at": self.measured_at}


def table(evaluations: Sequence[Evaluation]) -> list[EvaluationRow]:
    """Slices, multiple choice and a judge's scores, by step, then name; samples are omitted."""
    return [
        EvaluationRow(
            each.step,
            each.kind,
            scores_of(each.result).name if each.kind == JUDGE else each.name,
            each.loss,
            {key: each.result.get(key) for key in KEYS[each.kind]},
            each.measured_at,
        )
        for each in evaluations
        if each.kind in KEYS
    ]


KEYS = {
    SLICE: ("slice", "tokens", "tokens_sha256", "perplexity", "bits_per_byte", "precision", "tokenizer"),
    CHOICES: (
        "accuracy", "accuracy_stderr", "accuracy_norm", "accuracy_norm_stderr", "accuracy_per_token", "chance",
        "questions", "file_sha256", "precision", "tokenizer",
    ),
    JUDGE: (
        "test", "test_sha256", "judge", "mean", "deviation", "scored", "unscored", "cut", "max_tokens", "prompt",
        "manifest_sha256",
    ),
}  # fmt: skip
