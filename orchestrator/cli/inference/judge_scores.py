"""Scores that a judge gives answers: what it is asked, how its words are read, what is kept so that it is asked once.

Example::

    scores = JudgeScores(home / "judge", RemoteModel("https://api.openai.com/v1", "gpt-4o-mini", key))
    scores.score_of(answered)            # 85, or None where the judge names no score
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.remote.web.chat_completions import RemoteModel, complete
from orchestrator.remote.whole_files import landing

TRIES = 3
"""A judge that names no score is asked again so often."""
ASKED = (
    "Given the input `{instruction}`{more} and the correct output `{output}`, score the model response `{answer}` on a "
    "scale from 0 to 100, where 100 is the best score. Respond with the integer number only."
)
"""After github.com/rasbt/LLMs-from-scratch, chapter 7."""
THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
MOST = re.compile(r"(/|out of)\s*100(?![\d.])")
WHOLE = re.compile("100|[0-9]{1,2}")
NUMBER = re.compile(r"(?<![\w.-])\d+(\.\d+)?(?!\w)")


@dataclass(frozen=True)
class Answered:
    """An example of the test file and what a model answered. `cut`: its prompt did not fit and lost its beginning."""

    instruction: str
    more: str
    output: str
    answer: str
    cut: bool = False


@dataclass(frozen=True)
class Verdict:
    """One row of the table: mean and standard deviation of the scores from 0 to 100; None where there are too few."""

    model: str
    mean: float | None
    deviation: float | None
    scored: int
    unscored: int
    """Answers for which the judge named no score."""
    cut: int


@dataclass(frozen=True)
class JudgeScores:
    """Asks the judge about each answer once; `folder` keeps the scores, one small file each."""

    folder: Path
    judge: RemoteModel
    complete: Callable[[RemoteModel, str], str] = complete

    def score_of(self, answered: Answered) -> int | None:
        """The score; None where the judge names none, which is asked again next time. Raises what `complete` does."""
        prompt = question(answered)
        key = json.dumps([self.judge.endpoint, self.judge.name, prompt]).encode()
        file = self.folder / f"score-{hashlib.sha256(key).hexdigest()[:32]}.json"
        kept = _kept_score(file)
        if kept is not None:
            return kept
        for _ in range(TRIES):
            score = read_score(self.complete(self.judge, prompt))
            if score is not None:
                with landing(file) as target:
                    target.write(json.dumps({"score": score}).encode())
                return score
        return None


def question(answered: Answered) -> str:
    """What the judge is asked about one answer."""
    more = f" with `{answered.more}`" if answered.more else ""
    parts = {"instruction": answered.instruction, "output": answered.output, "answer": answered.answer}
    return ASKED.format(more=more, **parts)


def read_score(said: str) -> int | None:
    """The one whole number from 0 to 100 a judge says: `85`, `85/100`, `Score: 85.`; None for none or several."""
    numbers = [found[0] for found in NUMBER.finditer(MOST.sub(" ", THOUGHT.sub(" ", said)))]
    return int(numbers[0]) if len(numbers) == 1 and WHOLE.fullmatch(numbers[0]) else None


def verdict_of(model: str, answered: Sequence[Answered], scores: Sequence[int | None]) -> Verdict:
    """Mean and standard deviation (n - 1) of the scores that there are."""
    known = [score for score in scores if score is not None]
    return Verdict(
        model,
        statistics.mean(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
        len(known),
        len(scores) - len(known),
        sum(each.cut for each in answered),
    )


def _kept_score(file: Path) -> int | None:
    try:
        found = json.loads(file.read_text())["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if type(found) is int else None
