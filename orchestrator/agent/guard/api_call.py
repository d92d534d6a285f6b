"""One request to the provider's API from its own machine: end this instance, or see whether the key still works.

The provider's names stay with the laptop: the order says which address gets which body. The key goes to that address
alone; redirects are not followed, and neither key nor answer is ever in a message.

Example::

    call("https://cloud.example/api/v1/instances/i-1", key)                        # None: fine; else what is wrong
    call("https://cloud.example/api/v1/terminate", key, {"instance_ids": ["i-1"]})
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Mapping

from ..contract.names import Code
from ..system.refusal import Refusal
from .trouble import Trouble

DEADLINE_S = 20.0
MOST_BYTES = 1 << 20
REFUSED = (401, 403)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for one host: an answer that sends us elsewhere is an error."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


def checked_url(url: object) -> str:
    """The address, https or this computer's own. Raises Refusal: anything else would show the key to the network."""
    parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
    if parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))):
        return str(url)
    raise Refusal(Code.BAD_REQUEST, "the guard needs https addresses, got scheme %r" % parts.scheme)


def call(url: str, key: str, body: Mapping[str, object] | None = None) -> Trouble | None:
    """GET, or POST with a body. None when it was accepted."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json", "User-Agent": "gptctl-guard"}
    handlers: list[Any] = [_NoRedirect()]
    if url.startswith("http://"):
        handlers.append(urllib.request.ProxyHandler({}))  # this computer's own: a proxy has no business with it
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.build_opener(*handlers).open(request, timeout=DEADLINE_S) as answer:
            answer.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        return Trouble("the API answered %d" % error.code, error.code in REFUSED)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # ValueError: a key with a line break makes no header. Its text would hold the key, so only the kind is said.
        reason = getattr(error, "reason", error)
        words = str(reason) if isinstance(reason, OSError) else type(reason).__name__
        return Trouble("the API could not be asked: %s" % words)
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
