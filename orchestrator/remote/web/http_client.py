"""One HTTP request and its answer, under one deadline. The only user of httpx; no service is known here.

TLS certificates are checked. A proxy is never used to reach this computer. Redirects are followed only on request, five
at most, and only the first host gets the headers, which may hold a token. A message names the host and the path, never
the query, a header or the key.

Example::

    answer = send("PUT", url, {"Content-Length": "0"}, most_bytes=4096, deadline_s=20.0)
    answer.status, answer.headers["etag"], answer.content
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from orchestrator.core.errors import NoAnswer, UserError

if TYPE_CHECKING:
    import httpx

MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Response:
    """An answer, its body cut at the caller's limit. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def total_bytes(self) -> int | None:
        """Size of the whole file, for a request of the file or of a range; None if the server does not say."""
        of = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", self.headers.get("content-range", ""))
        if of:
            return int(of[1])
        length = self.headers.get("content-length", "")
        return int(length) if self.status == 200 and length.isdigit() else None

    @property
    def retry_after_s(self) -> float:
        """Seconds from now until the server wants to be asked again, given as a number or a date; 0 if unreadable."""
        text = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,6}", text):
            return float(text)
        with suppress(ValueError, TypeError):
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        return 0.0


def send(
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    most_bytes: int,
    deadline_s: float,
    content: bytes | None = None,
    label: str = "",
) -> Response:
    """One request. Reads the body up to most_bytes and leaves the rest on the server; follows no redirect.

    `label` stands for "HOST: no answer to METHOD PATH" in messages. Raises NoAnswer, whose `sent` says whether the
    request may have had an effect, and UserError for a URL that is not an http or https address.
    """
    where = urlsplit(url)
    if where.scheme not in ("http", "https") or not where.hostname:
        raise UserError(f"{url.partition('?')[0]!r} is not an http or https address", "write it as https://HOST/PATH")
    # Only now: a third of the time that `gptctl run` takes to load, and a run on this computer sends nothing.
    import httpx

    sent = False

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal sent
        sent = sent or "send_request_headers" in event

    try:
        every = {"User-Agent": "gptctl", "Accept-Encoding": "identity", **headers}
        request = httpx.Request(method, url, headers=every, content=content, extensions={"trace": trace})
        return asyncio.run(_exchange(request, most_bytes, deadline_s))
    except TimeoutError:
        why = f"nothing within {deadline_s:.0f} s"
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        why = CONTROL.sub(" ", str(error) or type(error).__name__)[:300]
    label = label or f"{where.netloc}: no answer to {method} {where.path}"
    raise NoAnswer(f"{label}: {why}", f"try again later; is {where.netloc} reachable from here?", sent=sent)


def send_along_redirects(
    method: str, url: str, headers: Mapping[str, str], *, most_bytes: int, deadline_s: float
) -> Response:
    """The first answer that is not a redirect. Another host gets the Range header only. Raises NoAnswer."""
    first, allowed = origin(url), dict(headers)
    for _ in range(MOST_REDIRECTS + 1):
        answer = send(method, url, allowed, most_bytes=most_bytes, deadline_s=deadline_s)
        if answer.status not in REDIRECTS:
            return answer
        url = urljoin(url, answer.headers.get("location", ""))
        if origin(url) != first:  # a token is for the server it was made for
            allowed = {name: value for name, value in allowed.items() if name == "Range"}
    raise NoAnswer(f"{urlsplit(url).netloc}: more than {MOST_REDIRECTS} redirects", "check the URL in a browser")


def origin(url: str) -> tuple[str, str]:
    """Scheme and host with port: what a credential belongs to."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def is_loopback(url: str) -> bool:
    """Whether the address is this computer itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _exchange(request: httpx.Request, most_bytes: int, deadline_s: float) -> Response:
    """The deadline covers resolving, connecting and a server that sends a byte at a time."""
    # Only with it.
    import httpx

    url = str(request.url)
    async with (
        asyncio.timeout(deadline_s),
        httpx.AsyncClient(
            timeout=deadline_s,
            follow_redirects=False,
            verify=url.startswith("https://"),  # without TLS, reading the certificates takes most of the time
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
            return Response(response.status_code, names, bytes(received[:most_bytes]))
        finally:
            await response.aclose()
