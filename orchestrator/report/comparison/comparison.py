"""Several runs side by side: ranked, each against the baseline, with what differs between them. Pure; no I/O.

Losses compare only where they were measured on the same tokens with the same tokenizer: on a test slice whose tokens
have the same sha256, else on the same validation slice. A difference is told with
the interval that holds it at 95 % (seed_noise.py); one whose interval holds zero is noise, or of too few seeds.

    comparison = compare([a, b], baseline="id-of-a", seeds=others)
    comparison.runs[0].verdict
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.facts.origin import RESUMED
from orchestrator.core.states import Outcome
from orchestrator.core.typed_json import decode
from orchestrator.ledger.records import Evaluation, RunRecord
from orchestrator.report.comparison.result import (
    Anchor,
    ComparedRow,
    Comparison,
    Difference,
    Environment,
    EqualTokens,
    Metric,
)
from orchestrator.report.comparison.seed_noise import Deviation, Effect, effect_of, pooled
from orchestrator.report.evaluations import SLICE
from orchestrator.report.judged import JudgedOfRun, judge_columns, judge_notes, of_best
from orchestrator.report.lineage import descends_from, origin_name
from orchestrator.report.local_checkpoints import Checkpoint
from orchestrator.report.metrics import Training
from orchestrator.report.pages.run_page import flat
from trainer.contract import DataConfig

IDENTITY = ("name", "description", "limits", "machines", "eval", "published")
"""Tables and keys of a recipe that do not change what is learned."""


@dataclass(frozen=True)
class Compared:
    """What is known about one run. Hours and USD are of the whole run, `train_hours` of its training alone."""

    run: RunRecord
    training: Training = field(default_factory=Training)
    evaluations: Sequence[Evaluation] = ()
    cost_usd: float = 0.0
    hours: float = 0.0
    train_hours: float = 0.0
    checkpoints: Sequence[Checkpoint] = ()
    """Those that are here."""

    @property
    def tokenizer(self) -> str:
        data = self.run.recipe_data.get("data") or {}
        return data.get("tokenizer") or (data.get("prepare") or {}).get("tokenizer") or DataConfig.tokenizer

    @property
    def finished(self) -> bool:
        return self.run.outcome in (Outcome.FINISHED, Outcome.IMPORTED)

    @property
    def val_loss(self) -> float | None:
        """The last one."""
        last = self.training.last_val_loss
        return self.run.val_loss if last is None else last

    def judged(self) -> JudgedOfRun:
        """The scores of its best checkpoint, and those of others."""
        best = self.training.best_validation
        return of_best(self.evaluations, self.checkpoints, best.step if best else self.run.step)

    def tokens_at(self, step: int) -> float:
        """Seen by the end of a step; 0 without a plan."""
        plan = self.run.plan
        if not plan:
            return 0.0
        if (self.run.recipe_data.get("train") or {}).get("stages"):
            return Recipe.from_resolved(self.run.recipe_data).course(plan.steps).tokens(step)
        return step * plan.tokens / plan.steps

    def slices(self) -> dict[str, Evaluation]:
        """The latest loss on each slice, by the sha256 of its tokens."""
        known = [each for each in self.evaluations if each.kind == SLICE and each.loss is not None]
        return {str(each.result["tokens_sha256"]): each for each in known if each.result.get("tokens_sha256")}


def score(run: Compared, metric: Metric) -> float | None:
    """The run's loss by that metric; None where it was not measured."""
    if metric.sha256 is None:
        return run.val_loss
    evaluation = run.slices().get(metric.sha256)
    return evaluation.loss if evaluation else None


def compare(runs: Sequence[Compared], baseline: str, seeds: Sequence[Compared] = ()) -> Comparison:
    """Ranks the runs, each against the baseline. `seeds` are finished runs that may show what a seed alone changes."""
    base = next(each for each in runs if each.run.id == baseline)
    metric = choose_metric(runs, base)
    groups = by_recipe(runs, seeds, metric)
    deviation = pooled([list(group.values()) for group in groups.values()])
    equal = equal_tokens(runs)
    rows = [_row(each, base, metric, Noise(groups, deviation), equal) for each in runs]
    judges = judge_columns([scores for row in rows for scores in row.judged])
    ranked = sorted((row for row in rows if row.why is None), key=lambda row: row.value or 0.0)
    order = [replace(row, rank=rank) for rank, row in enumerate(ranked, start=1)]
    return Comparison(
        baseline=baseline,
        metric=metric,
        seed_deviation=deviation,
        equal_tokens=equal,
        runs=[*order, *(row for row in rows if row.why is not None)],
        config_differences=differences({each.run.id: _config(each) for each in runs}),
        environment_differences=differences({each.run.id: vars(_environment(each)) for each in runs}),
        published=anchors(runs),
        judges=judges,
        notes=[
            *_notes(runs, base, metric, deviation),
            *judge_notes({each.run.id: each.judged() for each in runs}, judges),
        ],
    )


def choose_metric(runs: Sequence[Compared], base: Compared) -> Metric:
    """The longest slice that the baseline and every finished run of its tokenizer were measured on."""
    peers = [each for each in runs if each.finished and each.tokenizer == base.tokenizer] or [base]
    shared = set(base.slices()).intersection(*(each.slices() for each in peers))
    if not shared:
        return Metric()
    best = max(
        (base.slices()[sha256] for sha256 in shared), key=lambda each: (each.result.get("tokens") or 0, each.name)
    )
    return Metric(str(best.result["tokens_sha256"]), f"loss on test slice {best.name}")


Groups = Mapping[str, Mapping[int, float]]
"""The loss of each seed of each compared recipe, which is named by _seedless()."""


@dataclass(frozen=True)
class Noise:
    """What is known of how seeds vary."""

    groups: Groups
    deviation: Deviation

    def effect(self, each: Compared, base: Compared, values: tuple[float, float]) -> Effect:
        """Of two recipes by all of their seeds; of two runs of one recipe, by their two losses."""
        own, other = _seedless(each.run), _seedless(base.run)
        if own == other:
            return effect_of({0: values[0]}, {1: values[1]}, self.deviation)
        return effect_of(self.groups[own], self.groups[other], self.deviation)


def by_recipe(runs: Sequence[Compared], seeds: Sequence[Compared], metric: Metric) -> Groups:
    """Of those recipes that are compared. `seeds` are runs that you did not name."""
    groups: dict[str, dict[int, float]] = {}
    known = {each.run.id: each for each in (*seeds, *runs) if each.finished and not _resumed(each.run)}
    recipes = {_seedless(each.run) for each in runs}
    for each in known.values():
        key, value = _seedless(each.run), score(each, metric)
        if key in recipes and value is not None:
            groups.setdefault(key, {})[int((each.run.recipe_data.get("train") or {}).get("seed") or 0)] = value
    return groups


def _resumed(run: RunRecord) -> bool:
    """A run that continued another one shares its history: a seed explains less of its loss."""
    return run.facts.origin is not None and run.facts.origin.how == RESUMED


def _seedless(run: RunRecord) -> str:
    """The recipe without its seed."""
    kept = {key: value for key, value in run.recipe_data.items() if key not in IDENTITY}
    kept["train"] = {key: value for key, value in (kept.get("train") or {}).items() if key != "seed"}
    return json.dumps(kept, sort_keys=True)


def _row(each: Compared, base: Compared, metric: Metric, noise: Noise, equal: EqualTokens | None) -> ComparedRow:
    run, value = each.run, score(each, metric)
    why = _why_not(each, base, metric)
    start = score(base, metric)
    delta = value - start if why is None and value is not None and start is not None else None
    compares = delta is not None and each is not base and base.finished
    effect = noise.effect(each, base, (value or 0.0, start or 0.0)) if compares else None
    return ComparedRow(
        id=run.id,
        name=run.name,
        labels=run.labels,
        recipe=run.recipe,
        outcome=run.outcome and run.outcome.value,
        why=why,
        value=value,
        delta=delta,
        effect=effect,
        verdict="baseline" if each is base else effect.verdict if effect else None,
        loss=each.training.last_loss,
        val_loss=each.val_loss,
        best_val_loss=each.training.best_validation.value if each.training.best_validation else None,
        loss_at_equal_tokens=equal.losses.get(run.id) if equal else None,
        step=max(each.training.step, run.step),
        tokens=each.training.tokens,
        hours=each.hours,
        train_hours=each.train_hours,
        cost_usd=each.cost_usd,
        tokens_per_second=each.training.tokens_per_second,
        validations=each.training.validations,
        environment=_environment(each),
        judged=each.judged().best,
    )


def _why_not(each: Compared, base: Compared, metric: Metric) -> str | None:
    """Why a run has no rank; None for one that has."""
    run = each.run
    if each.tokenizer != base.tokenizer:
        return f"tokenizer {each.tokenizer}, not {base.tokenizer}: losses per token do not compare"
    if not each.finished:
        state = run.outcome.value if run.outcome else run.state.value
        return f"not finished: {state}, step {max(each.training.step, run.step):,} of {run.total_steps:,}"
    if score(each, metric) is None:
        return "no validation and no test slice"
    if descends_from(run) != descends_from(base.run):
        return descent(run, base.run)
    if metric.sha256 is None and _validated_on(each) != _validated_on(base):
        return "validated on other tokens than the baseline"
    return None


def descent(run: RunRecord, base: RunRecord) -> str:
    """Why two runs that do not begin from the same weights are not ranked as independent."""
    if run.facts.origin is not None and not run.facts.origin.imported:
        return f"descends from {origin_name(run.facts.origin)}, step {run.facts.origin.step:,}: not independent"
    origin = base.facts.origin
    return f"does not descend from {origin_name(origin) if origin else 'them'}, as the baseline does"


def _validated_on(each: Compared) -> str:
    data = each.run.recipe_data.get("data") or {}
    return json.dumps([data.get(key) for key in ("source", "prepare", "validation")], sort_keys=True)


def equal_tokens(runs: Sequence[Compared]) -> EqualTokens | None:
    """The validation loss of each run after as many tokens as all have trained on, interpolated between validations."""
    curves = {each.run.id: validation_curve(each) for each in runs}
    reached = [curve[-1][0] for curve in curves.values() if curve]
    if len(reached) < len(runs) or not reached:
        return None
    tokens = min(reached)
    losses = {run_id: interpolated(curve, tokens) for run_id, curve in curves.items()}
    return EqualTokens(round(tokens), losses)


def validation_curve(each: Compared) -> list[tuple[float, float]]:
    """Tokens and loss of each validation."""
    return [(each.tokens_at(point.step), point.value) for point in each.training.validations]


def interpolated(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """On the straight line between the neighbours; None before the first point."""
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[-1][1] if curve and x >= curve[-1][0] else None


def anchors(runs: Sequence[Compared]) -> list[Anchor]:
    """What others published for these recipes, each once."""
    found = (
        decode(Anchor, {**each, "recipe": run.run.recipe}, lenient=True)
        for run in runs
        for each in run.run.recipe_data.get("published") or ()
    )
    return list(dict.fromkeys(found))


def differences(values: Mapping[str, Mapping[str, object]]) -> list[Difference]:
    """One for each key whose value is not the same in all runs; a missing value is None."""
    keys = dict.fromkeys(key for each in values.values() for key in each)
    rows = {key: {run_id: each.get(key) for run_id, each in values.items()} for key in keys}
    return [Difference(key, row) for key, row in rows.items() if len({json.dumps(value) for value in row.values()}) > 1]


def _config(each: Compared) -> dict[str, str]:
    return dict(flat({key: value for key, value in each.run.recipe_data.items() if key not in IDENTITY}))


def _environment(each: Compared) -> Environment:
    started, plan = each.training.started, each.run.plan
    return Environment(
        machine=each.run.machine,
        device=started.device,
        torch=started.torch,
        compiled=started.compiled,
        attention=started.attention,
        precision=(each.run.recipe_data.get("train") or {}).get("precision"),
        ranks=started.ranks or (plan.ranks if plan else None),
        micro_batch=started.micro_batch or (plan.micro_batch if plan else None),
    )


def _notes(runs: Sequence[Compared], base: Compared, metric: Metric, deviation: Deviation) -> list[str]:
    notes = [deviation.words()]
    if len(runs) == 1:
        notes.insert(0, "one run only: nothing to compare it with")
    if not base.finished:
        notes.append(f"the baseline {base.run.id} is not finished, so no run is compared with it")
    if metric.sha256 is None:
        lacking = [each.run.id for each in runs if each.finished and not each.slices()]
        some = any(each.slices() for each in runs)
        if some and lacking:
            notes.append(
                f"ranked by validation loss, because {', '.join(lacking)} has no test loss; gptctl eval measures it"
            )
    else:
        precisions = {
            each.slices()[metric.sha256].result.get("precision") for each in runs if score(each, metric) is not None
        }
        if len(precisions) > 1:
            notes.append("the slice was measured in different precisions: " + ", ".join(sorted(map(str, precisions))))
    return notes + _overlaps(runs)


def _overlaps(runs: Sequence[Compared]) -> list[str]:
    """What is known of documents that the training data shares with other data; each finding once, with its runs."""
    found: dict[str, list[str]] = {}
    for each in runs:
        if each.run.facts.dataset and (words := each.run.facts.dataset.overlap):
            found.setdefault(words, []).append(each.run.id)
    return [f"the training data of {', '.join(ids)}: {words}" for words, ids in found.items()]
