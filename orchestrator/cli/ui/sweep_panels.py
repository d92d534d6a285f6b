"""A sweep as small panels: each arm's validation loss over the steps, against the baseline and its band.

The band is the difference from which on two single runs differ for certain (95 %), by the seeds of the sweep where
there are several, else by the published ones: seed_noise.py. It must not read files.

Example: `panels([Arm("baseline", 42, "run-1", "finished", 800, 800, ((400, 3.5), (800, 3.2)))], "baseline")["arms"]`
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.comparison.seed_noise import Deviation, pooled, student_95

MOST_POINTS = 60
Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Arm:
    """A run of a sweep and its validations: (step, nats per token)."""

    arm: str
    seed: int
    run: str
    state: str
    step: int
    total_steps: int
    curve: Curve


def panels(arms: Sequence[Arm], baseline: str) -> dict[str, Any]:
    """`{"arms": [...], "half": H, "noise": "..."}`: an arm's `delta` is its newest validation minus the mean of the
    baseline's runs at that step, None where they did not measure there; `verdict` better, worse, within, or nothing."""
    base = _mean([arm.curve for arm in arms if arm.arm == baseline])
    deviation = _deviation(arms)
    half = student_95(deviation.freedom) * deviation.value * math.sqrt(2)
    return {
        "arms": [_panel(arm, base, half, is_baseline=arm.arm == baseline) for arm in arms],
        "base": _thinned(sorted(base.items())),
        "half": half,
        "noise": deviation.words(),
    }


def _panel(arm: Arm, base: dict[int, float], half: float, *, is_baseline: bool) -> dict[str, Any]:
    step, value = next(((step, value) for step, value in reversed(arm.curve) if step in base), (None, math.nan))
    delta = None if step is None or is_baseline else value - base[step]
    verdict = "" if delta is None else "within" if abs(delta) < half else "better" if delta < 0 else "worse"
    return {
        "arm": arm.arm, "seed": arm.seed, "run": arm.run, "state": arm.state, "step": arm.step,
        "total_steps": arm.total_steps, "curve": _thinned(arm.curve), "delta": delta, "verdict": verdict,
        "is_baseline": is_baseline,
    }  # fmt: skip


def _mean(curves: Sequence[Curve]) -> dict[int, float]:
    """At each step that any of them measured: the mean of those that did."""
    found: dict[int, list[float]] = defaultdict(list)
    for curve in curves:
        for step, value in curve:
            found[step].append(value)
    return {step: sum(values) / len(values) for step, values in found.items()}


def _deviation(arms: Sequence[Arm]) -> Deviation:
    """Of arms that have ended with several seeds."""
    last: dict[str, list[float]] = defaultdict(list)
    for arm in arms:
        if arm.state == "finished" and arm.curve:
            last[arm.arm].append(arm.curve[-1][1])
    return pooled(list(last.values()))


def _thinned(curve: Curve) -> list[tuple[int, float]]:
    every = max(1, math.ceil(len(curve) / MOST_POINTS))
    return [*curve[:-1:every], curve[-1]] if curve else []
