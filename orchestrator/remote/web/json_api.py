"""JSON over HTTPS, with everything that can go wrong under a deadline. The only user of httpx.

It knows no provider: what a status or a body means, the caller says. The key goes to one host and nowhere else:
redirects are not followed, plain http is for this computer alone, and no message ever holds the key or a body.

Example::

    api = WebApi("Lambda Cloud", "https://cloud.lambda.ai/api/v1", key, pace)
    answer = api.once("POST", "/instance-operations/launch", body=order)      # one request, whatever happens
    rows = api.until("GET", "/instances", read_instances)                     # again and again, within the deadline
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from orchestrator.core.errors import BadCredentials, NoAnswer, UserError
from orchestrator.remote.web.request_pace import Pace

MOST_BYTES = 16 << 20
"""200 machines are 300 KB."""
ATTEMPT_S = 20.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What came back. `body`: the JSON; None where there was none."""

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
        body: Any = None,
        query: Mapping[str, str] | None = None,
        deadline_s: float = ATTEMPT_S,
        turn: tuple[str, ...] = ("request",),
    ) -> Answer:
        """One request and its answer, whatever its status. NoAnswer: none came, or none that can be read."""
        sent = False

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal sent
            sent = sent or "send_request_headers" in event

        request = self._request(method, path, body, query)
        request.extensions["trace"] = trace
        with self.pace.turn(*turn):
            try:
                return asyncio.run(self._exchange(request, deadline_s))
            except TimeoutError:
                raise self._no_answer(method, path, f"nothing within {deadline_s:.0f} s", sent) from None
            except (httpx.HTTPError, httpx.StreamError, OSError, ValueError, RecursionError) as error:
                raise self._no_answer(method, path, str(error) or type(error).__name__, sent) from error

    def until(
        self,
        method: str,
        path: str,
        read: Callable[[Answer], T],
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        deadline_s: float = 30.0,
    ) -> T:
        """What `read` makes of the first answer that is neither 429 nor 5xx; only for what may be asked twice.

        `read` raises NoAnswer for an answer it cannot make sense of: asked again. The last NoAnswer is raised when
        deadline_s, counted from the first request, has passed.
        """
        end, pause_s = time.monotonic() + deadline_s, FIRST_PAUSE_S
        while True:
            wait_s = pause_s
            try:
                left_s = max(0.1, end - time.monotonic())
                answer = self.once(method, path, body=body, query=query, deadline_s=min(ATTEMPT_S, left_s))
                if answer.status != 429 and answer.status < 500:
                    return read(answer)
                wait_s = max(pause_s, answer.retry_after_s)
                raise self._no_answer(method, path, f"status {answer.status}", sent=True)
            except NoAnswer:
                if time.monotonic() + wait_s >= end:
                    raise
            time.sleep(wait_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def redacted(self, text: str) -> str:
        """The text on one line, at most 300 characters, without the key."""
        return CONTROL.sub(" ", text.replace(self.key, "[key]"))[:300]

    def _request(self, method: str, path: str, body: Any, query: Mapping[str, str] | None) -> httpx.Request:
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "gptctl",
        }
        return httpx.Request(method, self.url + path, params=query, json=body, headers=headers)

    async def _exchange(self, request: httpx.Request, deadline_s: float) -> Answer:
        """Everything within the deadline: resolving, connecting, a server that drips. Never a redirect."""
        async with (
            asyncio.timeout(deadline_s),
            httpx.AsyncClient(
                timeout=deadline_s,
                follow_redirects=False,
                verify=self.url.startswith("https://"),  # without TLS, reading the certificates takes most of the time
                trust_env=not is_loopback(self.url),  # a proxy has no business between this computer and itself
            ) as client,
        ):
            response = await client.send(request, stream=True)
            try:
                if response.is_redirect:
                    where = urlsplit(response.headers.get("location", "")).hostname or "elsewhere"
                    raise ValueError(f"it redirects to {where}, which was not followed")
                return _answer(response, await _body(response))
            finally:
                await response.aclose()

    def _no_answer(self, method: str, path: str, why: str, sent: bool) -> NoAnswer:
        return NoAnswer(
            f"{self.name}: no answer to {method} {path.partition('?')[0]}: {self.redacted(why)}",
            hint=f"try again later; is {urlsplit(self.url).netloc} reachable from here?",
            sent=sent,
        )


@dataclass(frozen=True)
class RawAnswer:
    """An answer as it came, its body cut where the caller had enough. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)


def send(method: str, url: str, headers: Mapping[str, str], most_bytes: int, deadline_s: float) -> RawAnswer:
    """One request, no redirect followed; the body is read up to most_bytes, and the rest is never asked for.

    Raises NoAnswer, which names the host and never the query, and UserError for a URL that cannot be.
    """
    where = urlsplit(url)
    if where.scheme not in ("http", "https") or not where.hostname:
        raise UserError(f"{url.partition('?')[0]!r} is no http or https address", "write it as https://HOST/PATH")
    sent = {"User-Agent": "gptctl", "Accept-Encoding": "identity", **headers}
    try:
        return asyncio.run(_send(httpx.Request(method, url, headers=sent), most_bytes, deadline_s))
    except TimeoutError:
        why = f"nothing within {deadline_s:.0f} s"
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        why = CONTROL.sub(" ", str(error) or type(error).__name__)[:300]
    raise NoAnswer(
        f"{where.netloc}: no answer to {method} {where.path}: {why}", f"is {where.netloc} reachable from here?"
    )


async def _send(request: httpx.Request, most_bytes: int, deadline_s: float) -> RawAnswer:
    url = str(request.url)
    async with (
        asyncio.timeout(deadline_s),
        httpx.AsyncClient(
            timeout=deadline_s,
            follow_redirects=False,
            verify=url.startswith("https://"),
            trust_env=not is_loopback(url),
        ) as client,
    ):
        response = await client.send(request, stream=True)
        try:
            received = bytearray()
            if request.method != "HEAD" and not response.is_redirect:
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if len(received) >= most_bytes:
                        break
            names = {name.lower(): value for name, value in response.headers.items()}
            return RawAnswer(response.status_code, names, bytes(received[:most_bytes]))
        finally:
            await response.aclose()


def is_loopback(url: str) -> bool:
    """Whether the address is this computer itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _body(response: httpx.Response) -> bytes:
    """At most MOST_BYTES of it. Raises ValueError for more."""
    received = bytearray()
    async for chunk in response.aiter_bytes():
        received += chunk
        if len(received) > MOST_BYTES:
            raise ValueError(f"an answer of more than {MOST_BYTES >> 20} MiB")
    return bytes(received)


def _answer(response: httpx.Response, content: bytes) -> Answer:
    """An error may come from a proxy and be no JSON; a success must be. Raises ValueError, RecursionError."""
    status = response.status_code
    try:
        body = json.loads(content, parse_constant=_refuse) if content else None
    except (ValueError, RecursionError):
        if status < 400:
            raise
        body = None
    return Answer(status, body, retry_after_s(response.headers.get("retry-after", "")))


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def retry_after_s(text: str) -> float:
    """Seconds from now, given as a number or a date; 0 when absent or unreadable."""
    if re.fullmatch(r"\d{1,6}", text.strip()):
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
