"""How far a long program of the trainer is: JSON lines on stdout, one a second, with rate and time left.

It must not decide anything. `gptctl` shows the lines as they come.

Example::

    say("progress", done=1_000_000, total=5_000_000, unit="bytes", rate=2e6, eta_s=2.0)
"""

from __future__ import annotations

import json
import time

EVERY_S = 1.0


def say(event: str, **values: object) -> None:
    """One line."""
    print(json.dumps({"event": event, **values}), flush=True)


class Progress:
    """Of a preparation: by bytes of the source, or by documents where their number is limited."""

    def __init__(self, total_bytes: int, documents: int | None = None) -> None:
        self.total_bytes, self.documents = total_bytes, documents
        self.started = self.said = time.monotonic()
        self.first: tuple[int, int, int] | None = None
        """Bytes, documents and tokens at the first call: what an earlier process had done is no speed of this one."""

    def tell(self, done_bytes: int, documents: int, tokens: int, *, last: bool = False) -> None:
        """Says how far it is, if it is time again."""
        now = time.monotonic()
        first = self.first = self.first or (done_bytes, documents, tokens)
        if not last and now - self.said < EVERY_S:
            return
        self.said = now
        passed_s = max(now - self.started, 1e-9)
        rate = (done_bytes - first[0]) / passed_s
        eta_s = (self.total_bytes - done_bytes) / rate if rate > 0 else None
        if self.documents is not None:
            eta_s = (self.documents - documents) * passed_s / max(documents - first[1], 1)
        say(
            "progress",
            done=done_bytes,
            total=self.total_bytes,
            unit="bytes",
            rate=rate,
            eta_s=0.0 if last else eta_s,
            documents=documents,
            tokens=tokens,
            tokens_per_second=(tokens - first[2]) / passed_s,
        )
