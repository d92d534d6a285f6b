"""Whether an arm of a sweep is so much worse than its baseline that it ends early: off unless its terms say so.

Example::

    verdict(arm={200: 3.41}, baseline={200: 3.20}, step=200, margin=0.1)      # 'val loss 3.4100 at step 200 ...'
"""

from __future__ import annotations

import os
from typing import Mapping

from trainer import run_files

from ..contract.requests import StopRule
from ..system import files


def verdict(arm: Mapping[int, float], baseline: Mapping[int, float], step: int, margin: float) -> str | None:
    """Why it ends, or None. Compares the two at the first step from `step` on at which both were validated, so the
    answer does not change as more is trained. Losses in nats per token, by step."""
    common = sorted(each for each in arm if each >= step and each in baseline)
    if not common:
        return None
    at = common[0]
    if arm[at] - baseline[at] <= margin:
        return None
    return "val loss %.4f at step %d is more than %g above the baseline's %.4f" % (arm[at], at, margin, baseline[at])


def why(arm_folder: str, baseline_folder: str, rule: StopRule) -> str | None:
    """As verdict, of two run folders. A baseline that ended on another machine has its losses from the caller."""
    baseline = {**handed_over(rule), **validations(baseline_folder)}
    return verdict(validations(arm_folder), baseline, rule["step"], rule["margin"])


def handed_over(rule: StopRule) -> dict[int, float]:
    """What the caller has of the baseline; a pair that is none is left out."""
    given = rule.get("losses")
    pairs = [each for each in given if isinstance(each, list) and len(each) == 2] if isinstance(given, list) else []
    return {step: float(loss) for step, loss in pairs if isinstance(step, int) and isinstance(loss, (int, float))}


def validations(run_folder: str) -> dict[int, float]:
    """Validation losses of a run by step, from its events; a resumed run's later line counts."""
    found: dict[int, float] = {}
    for line in files.json_lines(os.path.join(run_folder, run_files.EVENTS)):
        step, loss = line.get("step"), line.get("val_loss")
        if line.get("event") == run_files.EVENT_VALIDATED and isinstance(step, int) and isinstance(loss, (int, float)):
            found[step] = float(loss)
    return found
