"""Scores that a judge gave the answers of checkpoints: kept with the run, and shown for the bytes that were judged.

A checkpoint is named by its manifest's sha256. A run that trained on has another best checkpoint, and a step that was
trained again has other bytes: the scores of those that were are not theirs. It must not ask a judge.

    ledger.add_evaluation(judged(run.id, 600, Judged("test.json", ..., mean=71.3, deviation=12.0, scored=200), time))
    of_best(ledger.evaluations(run.id), read_checkpoints(folder), step=600).best
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.formats import DASH, number
from orchestrator.core.typed_json import decode, encode
from orchestrator.ledger.records import Evaluation
from orchestrator.report.comparison.seed_noise import student_95
from orchestrator.report.local_checkpoints import Checkpoint

JUDGE = "judge"


@dataclass(frozen=True)
class Judged:
    """What one judge gave one checkpoint's answers to one test file, from 0 to 100."""

    test: str
    """The file's name."""
    test_sha256: str
    judge: str
    max_tokens: int
    """The longest answer."""
    prompt: str | None
    """The template you gave; None: the model's own."""
    manifest_sha256: str
    """Of the checkpoint."""
    mean: float
    deviation: float | None
    """Of the answers (n - 1); None for one answer."""
    scored: int
    unscored: int
    cut: int = 0
    """Prompts that did not fit and lost their beginning."""
    endpoint: str = ""

    @property
    def settings(self) -> str:
        """The same for scores that compare: same test, judge, endpoint, template and length."""
        asked = [self.test_sha256, self.judge, self.endpoint, self.max_tokens, self.prompt]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """`test.json by gpt-4o-mini`."""
        return f"{self.test} by {self.judge}"

    @property
    def reach(self) -> float | None:
        """Half the width of the interval that holds the mean at 95 %, as far as the choice of examples changes it."""
        if self.deviation is None:
            return None
        return student_95(self.scored - 1) * self.deviation / math.sqrt(self.scored)

    def words(self) -> str:
        """`71.3 ± 2.4`."""
        return number(self.mean, 1) + (f" ± {number(self.reach, 1)}" if self.reach is not None else "")


def judged(run_id: str, step: int, scores: Judged, time: float) -> Evaluation:
    """What the ledger keeps; the same settings on the same step replace it."""
    return Evaluation(run_id, step, JUDGE, scores.settings, time, None, encode(scores))


def scores_of(result: Mapping[str, object]) -> Judged:
    """The scores in the `result` of a row of the ledger."""
    return decode(Judged, result, lenient=True)


def of_these(evaluations: Sequence[Evaluation], checkpoints: Sequence[Checkpoint]) -> list[Evaluation]:
    """Without scores of a step whose checkpoint here has other bytes than were judged: it was trained again."""
    here = {each.step: each.manifest_sha256 for each in checkpoints}

    def stands(each: Evaluation) -> bool:
        judged_bytes = each.result.get("manifest_sha256")
        return each.kind != JUDGE or here.get(each.step, judged_bytes) == judged_bytes

    return [each for each in evaluations if stands(each)]


@dataclass(frozen=True)
class JudgedOfRun:
    """The scores of a run's best checkpoint; and those of others, in settings that the best one was not judged in."""

    best: Sequence[Judged]
    others: Sequence[Evaluation]


def of_best(evaluations: Sequence[Evaluation], checkpoints: Sequence[Checkpoint], step: int | None) -> JudgedOfRun:
    """The best checkpoint is the latest of a run without validation. `step`: its step, where no checkpoint is here."""
    found = [each for each in evaluations if each.kind == JUDGE]
    marked = [each for each in checkpoints if each.best] or [each for each in checkpoints if each.latest]
    if marked:
        now = [each for each in found if each.result.get("manifest_sha256") == marked[0].manifest_sha256]
    else:
        now = [each for each in found if each.step == step]
    known = {each.name for each in now}
    return JudgedOfRun([scores_of(each.result) for each in now], [each for each in found if each.name not in known])


@dataclass(frozen=True)
class JudgeColumn:
    """A column of a comparison: scores that compare."""

    settings: str
    test: str
    judge: str
    label: str
    """`JUDGED`, or numbered where there are several."""

    def cell(self, scores: Sequence[Judged]) -> str:
        """A run's mean there."""
        return next((each.words() for each in scores if each.settings == self.settings), DASH)


def judge_columns(scores: Sequence[Judged]) -> list[JudgeColumn]:
    """One for each way of judging, in the order of test and judge."""
    kinds = {each.settings: each for each in sorted(scores, key=lambda each: (each.test, each.judge, each.settings))}
    several = len(kinds) > 1
    return [
        JudgeColumn(key, each.test, each.judge, f"JUDGED {at}" if several else "JUDGED")
        for at, (key, each) in enumerate(kinds.items(), start=1)
    ]


def judge_notes(runs: Mapping[str, JudgedOfRun], columns: Sequence[JudgeColumn]) -> list[str]:
    """What the columns are, which runs (by id) have no score there, and which have one of another checkpoint alone."""
    notes = []
    for each in columns:
        notes.append(
            f"{each.label}: mean score from 0 to 100 that {each.judge} gave the answers to {each.test}; ± is what the "
            "choice of examples explains, at 95 %"
        )
        older = {run_id for run_id, known in runs.items() if any(row.name == each.settings for row in known.others)}
        never = [run_id for run_id, known in runs.items() if each.cell(known.best) == DASH and run_id not in older]
        if never:
            notes.append(f"without it: {', '.join(never)}; gptctl judge {' '.join(never)} --test {each.test}")
    for run_id, known in runs.items():
        for row in known.others:
            again = f"gptctl judge {run_id} --test {row.result.get('test')}"
            notes.append(f"{run_id}: step {row.step:,} was judged, which is not its best checkpoint; {again}")
    return notes
