"""A few bytes from a URL: headers, listings, manifests. Large files are pulled by the machine, not through here.

No storage scheme is known here: the caller says what a status means. A busy or silent server is asked again, no sooner
than it wants.

Example::

    answer = fetch("https://example.org/train.bin", first=0, size_bytes=65_536)
    answer.status, answer.content[:8], answer.total_bytes
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from orchestrator.core.errors import NoAnswer
from orchestrator.remote.web.http_client import Response, send_along_redirects
from orchestrator.remote.web.retries import Again, Patience, repeat

SILENCE_S = 20.0
"""How long a server that does not answer is asked again."""
BUSY_S = 120.0
"""How long a server that answers "busy" is asked again."""
BUSY = (408, 425, 429, 500, 502, 503, 504)


def fetch(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    first: int | None = None,
    size_bytes: int = 16 << 20,
) -> Response:
    """At most size_bytes of the answer's body; with `first`, of the file from that byte on. Raises NoAnswer."""
    span = {} if first is None else {"Range": f"bytes={first}-{first + size_bytes - 1}"}

    def ask() -> Response:
        try:
            every = {**(headers or {}), **span}
            answer = send_along_redirects(method, url, every, most_bytes=size_bytes, deadline_s=SILENCE_S)
        except NoAnswer as error:
            raise Again(error) from error
        if answer.status in BUSY:
            where = urlsplit(url)
            what = f"{where.netloc} answers {answer.status} to {method} {where.path}"
            busy = NoAnswer(what, "it is busy or limits requests; try again later")
            raise Again(busy, asked_s=answer.retry_after_s, within_s=BUSY_S)
        return answer

    return repeat(ask, Patience(within_s=SILENCE_S))
