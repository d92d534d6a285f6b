"""A few bytes from a URL: headers, listings, manifests. What is large, the machine pulls by itself.

It must not know a storage scheme: what a status means, the caller says. Redirects are followed, five at most, and
whatever headers were given (a token) go to the first host only, never on to another one. Throttling and lost answers
are waited out within the deadline, as long as the server asks.

Example::

    answer = fetch("https://example.org/train.bin", first=0, size_bytes=65_536)
    answer.status, answer.content[:8], answer.total_bytes
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

from orchestrator.core.errors import NoAnswer
from orchestrator.remote.web.json_api import RawAnswer, retry_after_s, send

MOST_REDIRECTS = 5
SILENCE_S = 20.0
"""For how long a server that does not answer is asked again."""
BUSY_S = 120.0
"""For how long one is that says that it is busy."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Fetched:
    """The answer at the end of all redirects. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def total_bytes(self) -> int | None:
        """Size of the whole file, whether all of it was asked for or a part."""
        of = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", self.headers.get("content-range", ""))
        if of:
            return int(of[1])
        length = self.headers.get("content-length", "")
        return int(length) if self.status == 200 and length.isdigit() else None


def fetch(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    first: int | None = None,
    size_bytes: int = 16 << 20,
) -> Fetched:
    """At most size_bytes of the answer's body; with `first`, of the file from there on. Raises NoAnswer."""
    began, pause_s = time.monotonic(), FIRST_PAUSE_S
    asked = {**(headers or {}), **({} if first is None else {"Range": f"bytes={first}-{first + size_bytes - 1}"})}
    while True:
        wait_s, ends = pause_s, began + SILENCE_S
        try:
            answer = _through_redirects(url, method, asked, size_bytes)
            if answer.status not in BUSY:
                return Fetched(answer.status, answer.headers, answer.content)
            wait_s, ends = max(pause_s, retry_after_s(answer.headers.get("retry-after", ""))), began + BUSY_S
            raise NoAnswer(
                f"{urlsplit(url).netloc} answers {answer.status} to {method} {urlsplit(url).path}",
                "it is busy or limits requests; try again later",
            )
        except NoAnswer:
            if time.monotonic() + wait_s >= ends:
                raise
        time.sleep(wait_s)
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)


def _through_redirects(url: str, method: str, headers: Mapping[str, str], most_bytes: int) -> RawAnswer:
    """The first answer that is no redirect."""
    asked, began = dict(headers), origin(url)
    for _ in range(MOST_REDIRECTS + 1):
        answer = send(method, url, asked, most_bytes, SILENCE_S)
        if answer.status not in REDIRECTS:
            return answer
        url = urljoin(url, answer.headers.get("location", ""))
        if origin(url) != began:  # a token is for the server it was made for
            asked = {name: value for name, value in asked.items() if name == "Range"}
    raise NoAnswer(f"{urlsplit(url).netloc}: more than {MOST_REDIRECTS} redirects", "check the URL in a browser")


def origin(url: str) -> tuple[str, str]:
    """Scheme and host with port: what a credential belongs to."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
