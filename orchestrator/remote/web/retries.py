"""The one loop that repeats a request with growing pauses, until it is answered or patience ends. The only user of
tenacity (docs/decisions/0017).

Only for what may be asked twice. The call raises Again for a failure that waiting may mend; everything else it raises
passes through at once.

Example::

    def ask() -> Response:
        answer = send("GET", url, {}, most_bytes=4096, deadline_s=20.0)
        if answer.status == 503:
            raise Again(NoAnswer("busy"), asked_s=answer.retry_after_s)
        return answer

    repeat(ask, Patience(within_s=30.0))       # after 30 s: raises that NoAnswer
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from orchestrator.core.errors import GptctlError

T = TypeVar("T")


class Again(Exception):
    """The call may succeed later. `error` is raised when patience ends; `asked_s` is the pause the server asks for;
    `within_s` replaces the patience's own."""

    def __init__(self, error: GptctlError, *, asked_s: float = 0.0, within_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error, self.asked_s, self.within_s = error, asked_s, within_s


@dataclass(frozen=True)
class Patience:
    """Pauses double from the first to the longest. The last try starts within `within_s` of the first one."""

    within_s: float
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0
    most_tries: int = 1000
    most_asked_s: float = float("inf")
    """The longest pause granted to a server that asks for one."""


def repeat(
    call: Callable[[], T],
    patience: Patience,
    *,
    before_pause: Callable[[GptctlError, float], None] = lambda error, pause_s: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """The call's value. Raises the `error` of the last Again when the next try would come too late."""
    growing, began = wait_exponential(patience.first_pause_s, max=patience.longest_pause_s), clock()

    def pause_s(state: RetryCallState) -> float:
        return max(growing(state), min(_again(state).asked_s, patience.most_asked_s))

    def is_over(state: RetryCallState) -> bool:
        own_s = _again(state).within_s
        within_s = patience.within_s if own_s is None else own_s
        too_late = clock() + state.upcoming_sleep >= began + within_s
        return too_late or state.attempt_number >= patience.most_tries

    retrying = Retrying(
        retry=retry_if_exception_type(Again),
        wait=pause_s,
        stop=is_over,
        sleep=sleep,
        before_sleep=lambda state: before_pause(_again(state).error, state.upcoming_sleep),
        reraise=True,
    )
    try:
        return retrying(call)
    except Again as again:
        raise again.error from again.__cause__


def _again(state: RetryCallState) -> Again:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, Again)
    return error
