"""Whether this machine is about to be taken away: asks the instance metadata (EC2's, version 2) while a training runs.

Polls in a thread of its own, so that an endpoint that hangs delays nothing. It must not stop anything: the supervisor
does, and writes down what was said. Neither the box's clock nor the endpoint is trusted far: a moment that cannot be
meant counts as two minutes from now.

Example::

    watch = Watch("http://169.254.169.254")
    watch.taken()            # {'action': 'terminate', 'time': '2026-11-26T22:08:00Z', 'left_s': 118.0}, or None
"""

from __future__ import annotations

import calendar
import http.client
import json
import threading
import time
import urllib.error
import urllib.request

from ..contract.answers import Taken
from ..contract.names import FileName

EVERY_S = 5.0
"""As often as EC2's documentation asks for; a notice comes two minutes before."""
NOTICE_S = 120.0
RESERVE_S = 15.0
"""Of the notice, for what comes after the training: its records, and the last bytes on their way."""
ANSWER_WITHIN_S = 2.0
TOKEN_S = 21600
TROUBLES = 6
"""So many polls without an answer in a row are worth a warning."""
MOST_BYTES = 65536
FILE = FileName.NOTICE
"""In the job's folder: {"taken", "warning", "at"}."""
TOKEN_PATH = "/latest/api/token"
TAKEN_PATH = "/latest/meta-data/spot/instance-action"
RISK_PATH = "/latest/meta-data/events/recommendations/rebalance"


class Watch:
    """What the polls have found. Its thread ends with the process."""

    def __init__(self, endpoint: str, every_s: float = EVERY_S) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.every_s = every_s
        self.token: str | None = None
        self.troubles = 0
        self._taken: Taken | None = None
        self._at_risk = False
        threading.Thread(target=self._poll, daemon=True).start()

    def taken(self) -> Taken | None:
        """The notice, once there is one."""
        return self._taken

    def warning(self) -> str | None:
        """What its owner should know already, or None."""
        if self._at_risk:
            return "the provider expects to take this machine away soon (a rebalance recommendation)"
        if self.troubles >= TROUBLES:
            return "the instance metadata does not answer: no warning will come before this machine is taken away"
        return None

    def _poll(self) -> None:
        while self._taken is None:
            try:
                found = self._ask(TAKEN_PATH)
                self._at_risk = self._at_risk or self._ask(RISK_PATH) is not None
                self.troubles = 0
                if found is not None:
                    self._taken = read_notice(found, time.time())
            except (OSError, http.client.HTTPException, ValueError):
                self.troubles += 1
            time.sleep(self.every_s)

    def _ask(self, path: str) -> bytes | None:
        """The document; None where there is none. Asks for a token first, and again when the endpoint refuses it."""
        for _ in range(2):
            if self.token is None:
                lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
                self.token = _fetch("PUT", self.endpoint + TOKEN_PATH, lifetime).decode("ascii")
            try:
                return _fetch("GET", self.endpoint + path, {"X-aws-ec2-metadata-token": self.token})
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 404:
                    return None
                if error.code != 401:
                    raise
                self.token = None
        return None


def _fetch(method: str, url: str, headers: dict[str, str]) -> bytes:
    """No proxy: it is this machine's own."""
    request = urllib.request.Request(url, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_WITHIN_S) as answer:
        return bytes(answer.read(MOST_BYTES))


def read_notice(document: bytes, now_s: float) -> Taken:
    """action, time as said, and the seconds until then. Any document that came under this path is a notice."""
    try:
        said = json.loads(document)
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    moment = said.get("time")
    left_s = _moment_s(moment) - now_s
    return {
        "action": str(said.get("action") or "terminate")[:20],
        "time": moment if isinstance(moment, str) else None,
        # This machine's clock may be wrong: then the two minutes count from when we saw it.
        "left_s": round(left_s if 0 < left_s <= NOTICE_S + 10 else NOTICE_S, 1),
    }


def _moment_s(text: object) -> float:
    try:
        return float(calendar.timegm(time.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return 0.0
