"""JSON over HTTPS, with everything that can go wrong under a deadline.

No provider is known here: the caller says what a status or a body means. The key goes to one host: redirects are not
followed, plain http is for this computer alone, and no message holds the key or a body.

Example::

    api = WebApi("Lambda Cloud", "https://cloud.lambda.ai/api/v1", key, pace)
    answer = api.once("POST", "/instance-operations/launch", body=order)      # exactly one request
    rows = api.until("GET", "/instances", read_instances)                     # repeated within the deadline
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from orchestrator.core.errors import BadCredentials, NoAnswer, UserError
from orchestrator.remote.web.http_client import CONTROL, Response, is_loopback, send
from orchestrator.remote.web.request_pace import Pace
from orchestrator.remote.web.retries import Again, Patience, repeat

MOST_BYTES = 16 << 20
"""200 machines are 300 KB."""
ATTEMPT_S = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """A status and its JSON; `body` is None where there was none."""

    status: int
    body: Any = field(default=None, repr=False)
    retry_after_s: float = 0.0


@dataclass(frozen=True)
class WebApi:
    """One API: its name for messages, its address with path, the key, and how often it may be asked."""

    name: str
    url: str
    key: str = field(repr=False)
    pace: Pace

    def __post_init__(self) -> None:
        if not (self.url.startswith("https://") or (self.url.startswith("http://") and is_loopback(self.url))):
            raise UserError(f"{self.url} would send the key unencrypted", hint="correct `endpoint`: https://...")
        if not re.fullmatch(r"[!-~]+", self.key):
            raise BadCredentials(f"the key for {self.name} holds spaces or strange characters", hint="copy it again")

    def once(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
        deadline_s: float = ATTEMPT_S,
        turn: tuple[str, ...] = ("request",),
    ) -> Answer:
        """Exactly one request. Raises NoAnswer if no answer arrives within deadline_s, or none that can be read."""
        url = self.url + path + (f"?{urlencode(query)}" if query else "")
        content = None if body is None else json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        kind = {} if content is None else {"Content-Type": "application/json"}
        headers = {"Authorization": f"Bearer {self.key}", "Accept": "application/json", **kind}
        label = f"{self.name}: no answer to {method} {path}"
        with self.pace.turn(*turn):
            try:
                response = send(
                    method, url, headers, content=content, most_bytes=MOST_BYTES + 1, deadline_s=deadline_s, label=label
                )
                return _decoded(response)
            except NoAnswer as error:
                raise NoAnswer(self.redacted(error.message), error.hint, sent=error.sent) from error
            except (ValueError, RecursionError) as error:
                raise self._no_answer(label, str(error)) from error

    def until(
        self,
        method: str,
        path: str,
        read: Callable[[Answer], T],
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
        deadline_s: float = 30.0,
    ) -> T:
        """What `read` makes of the first answer that is neither 429 nor 5xx; only for what may be asked twice.

        An answer for which `read` raises NoAnswer is asked for again. Raises the last NoAnswer when deadline_s, counted
        from the first request, has passed.
        """
        end = time.monotonic() + deadline_s

        def ask() -> T:
            left_s = max(0.1, end - time.monotonic())
            try:
                answer = self.once(method, path, body=body, query=query, deadline_s=min(ATTEMPT_S, left_s))
                if answer.status != 429 and answer.status < 500:
                    return read(answer)
            except NoAnswer as error:
                raise Again(error) from error
            raise Again(
                self._no_answer(f"{self.name}: no answer to {method} {path}", f"status {answer.status}"),
                asked_s=answer.retry_after_s,
            )

        return repeat(ask, Patience(within_s=deadline_s))

    def redacted(self, text: str) -> str:
        """The text on one line, at most 300 characters, without the key."""
        return CONTROL.sub(" ", text.replace(self.key, "[key]"))[:300]

    def _no_answer(self, label: str, why: str) -> NoAnswer:
        hint = f"try again later; is {urlsplit(self.url).netloc} reachable from here?"
        return NoAnswer(f"{label}: {self.redacted(why)}", hint)


def _decoded(response: Response) -> Answer:
    """A success must be JSON; an error may come from a proxy and be anything. Raises ValueError, RecursionError."""
    status, content = response.status, response.content
    if 300 <= status < 400:
        where = urlsplit(response.headers.get("location", "")).hostname or "elsewhere"
        raise ValueError(f"it redirects to {where}, which was not followed")
    if len(content) > MOST_BYTES:
        raise ValueError(f"an answer of more than {MOST_BYTES >> 20} MiB")
    try:
        body = json.loads(content, parse_constant=_refuse) if content else None
    except (ValueError, RecursionError):
        if status < 400:
            raise
        body = None
    return Answer(status, body, response.retry_after_s)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
