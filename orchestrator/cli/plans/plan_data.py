"""What part of a recipe's data goes to a machine, how many bytes, and from where.

`gptctl plan` asks in the background for at most two seconds: if a source does not answer, its figures are unknown.
`gptctl run` waits for the answer, since unreadable data should show before you pay for a machine.

Example::

    answer = ask_source(recipe, offline=False)
    ...                                       # clouds are asked meanwhile
    answer().moved(host, plan)   # {"source": "hf://...", "way": "pulled", "pulled_bytes": ..., ...}
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import storage
from orchestrator.cli.screen.foreign import clean
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.datasets import overlaps
from orchestrator.core.errors import GptctlError, NoAnswer, StorageError, UserError
from orchestrator.core.formats import size
from orchestrator.core.planning.plan import Plan, PlanData
from orchestrator.core.planning.remainder import unread_steps
from orchestrator.datasets.remote_dataset import StoredDataset, open_dataset
from orchestrator.datasets.staging_plan import staged_data

ASK_WITHIN_S = 2.0
PULLED, SENT, IN_PLACE = "pulled", "sent", "in place"
"""By the machine; by this computer; not at all, on this computer."""
NOT_PREPARED = "the tokens are prepared on this computer first"


@dataclass(frozen=True)
class Source:
    """A recipe's data according to its headers; without a dataset, `unknown` says why."""

    recipe: Recipe
    dataset: StoredDataset | None = None
    unknown: str = ""

    @property
    def train_tokens(self) -> int | None:
        """None if unknown."""
        return self.dataset.train_tokens if self.dataset else None

    def moved(self, host: HostSpec | None, plan: Plan) -> PlanData:
        """For the plan's steps there; figures are null where they are unknown. Raises UserError for too few tokens."""
        data = self.recipe.data
        source = data.prepare.named if data.prepare else data.source
        way = _way(self.recipe, host)
        if self.dataset is None:
            return PlanData(source, way, unknown=self.unknown)
        unread = unread_steps(self.recipe, host, plan.from_step)
        staged, whole = staged_data(self.dataset, self.recipe, plan.steps, unread), self.dataset.size_bytes
        pulled = {PULLED: staged.pulled_bytes, SENT: staged.sent_bytes(whole), IN_PLACE: 0}[way]
        return PlanData(source, way, staged.needed_bytes, pulled, whole, staged.verified_by)


def _way(recipe: Recipe, host: HostSpec | None) -> str:
    if recipe.data.prepare is None and "://" in (recipe.data.source or ""):
        return PULLED
    return IN_PLACE if host is not None and host.provider == "local" else SENT


def read_source(recipe: Recipe) -> Source:
    """The recipe's data, from its headers and a few ids. Raises what the storage raises, UserError for what is here."""
    if recipe.data.prepare is not None:
        return Source(recipe, unknown=NOT_PREPARED)
    source = recipe.data.source or ""
    try:
        return Source(recipe, open_dataset(storage.of(source), recipe, source))
    except StorageError as error:
        if "://" in source:
            raise
        raise UserError(f"data.source: {error.message.removeprefix('data.source: ')}", error.hint) from error


def ask_source(recipe: Recipe, *, offline: bool, within_s: float = ASK_WITHIN_S) -> Callable[[], Source]:
    """Starts to read the source, and returns a function that waits for the answer, until at most `within_s` from now.

    Data on this computer, and with `offline` all other data, is answered at once. The answer raises UserError where the
    source answered, and cannot be trained on.
    """
    away = recipe.data.prepare is None and "://" in (recipe.data.source or "")
    if not away or offline:
        known = Source(recipe, unknown="--offline") if away else _usable(_read(recipe))
        return lambda: known
    answers: list[Source | UserError] = []
    # A daemon: a source that hangs must not keep the command from ending.
    thread = threading.Thread(target=lambda: answers.append(_read(recipe)), daemon=True)
    until = time.monotonic() + within_s
    thread.start()

    def answer() -> Source:
        thread.join(max(0.0, until - time.monotonic()))
        return _usable(answers[0]) if answers else Source(recipe, unknown=f"no answer within {within_s:g} s")

    return answer


def _read(recipe: Recipe) -> Source | UserError:
    """The source; unknown only where nobody answers. Anything else that is wrong with it is yours to correct."""
    try:
        return read_source(recipe)
    except NoAnswer as error:
        return Source(recipe, unknown=error.message)
    except GptctlError as error:
        return error if isinstance(error, UserError) else UserError(error.message, error.hint)


def _usable(found: Source | UserError) -> Source:
    if isinstance(found, UserError):
        raise found
    return found


def data_words(data: PlanData) -> str:
    """One line for people."""
    source, way = clean(str(data.source)), data.way
    if data.unknown == NOT_PREPARED:
        then = "read in place" if way == IN_PLACE else "sent to the machine"
        return f"gptctl prepares tokens from {source} on this computer; they are {then}, and their size is known then"
    if data.unknown:
        part = f"unknown: {clean(data.unknown)}"
    elif way == IN_PLACE:
        part = f"{size(data.needed_bytes)} of {size(data.dataset_bytes)}"
    else:
        part = f"{size(data.pulled_bytes)} of {size(data.dataset_bytes)}"
    verified = f"; verified by {data.verified_by}" if way == PULLED and data.verified_by else ""
    what = {
        PULLED: f"the machine pulls from {source}",
        SENT: f"this computer sends {source} to the machine",
        IN_PLACE: f"nothing moves; the training reads {source} in place",
    }[way]
    return f"{what}: {part}{verified}" + (f"; {clean(data.overlap)}" if data.overlap else "")


def with_overlap(data: PlanData, home: Path) -> PlanData:
    """The same, with what `gptctl data overlap` found about the source."""
    return replace(data, overlap=overlaps.about(home, data.source or ""))


def data_lines(plans: Sequence[Plan]) -> list[str]:
    """What the plans say about the data, each line once, with its hosts if they differ."""
    hosts: dict[str, list[str]] = {}
    for plan in plans:
        if plan.data:
            hosts.setdefault(data_words(plan.data), []).append(plan.host or "rented machines")
    if len(hosts) < 2:
        return list(hosts)
    return [f"{', '.join(dict.fromkeys(names))}: {words}" for words, names in hosts.items()]
