"""A machine pulls files by itself: what is asked for as parts becomes the agent's pull job, followed to its end.

It must not know a storage scheme or make a plan; the parts are asked for again when their addresses may have ended.
URLs and headers go by stdin.

Example::

    pulled = pull(agent, run, lambda: [store.download_plan(uri, "data/3f9c/train.bin")], print)
    pulled["data/3f9c/train.bin"].sha256
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core.errors import AgentError, GptctlError, MachineUnfit, StorageError, VerificationFailed
from orchestrator.core.ports import Part
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.transfer_progress import Transfer

ROUNDS = 3
"""An address that ended is renewed, and damaged bytes are fetched anew, so often at most."""
AGAIN = ("source-refused", "source-lost", "needs-input", "wrong-bytes")
LEASE_S = 1800.0
Tell = Callable[[Transfer], None]


@dataclass(frozen=True)
class Pulled:
    """A file that is whole on the machine; `path` is absolute there."""

    path: str
    size_bytes: int
    sha256: str


def pull(
    agent: Agent,
    run: str,
    plan: Callable[[], Sequence[Part]],
    tell: Tell,
    *,
    folder: str | None = None,
    lease_s: float = LEASE_S,
) -> dict[str, Pulled]:
    """Destination, as the parts name it, to what lies there now. Calling again attaches, or finds it all there.

    folder: below which destinations lie; absent: the agent's own. Raises StorageError when the source does not give
    it, VerificationFailed for wrong bytes, MachineUnfit for a full disk, LinkLost when the link breaks (call again).
    """
    failure: GptctlError | None = None
    for _ in range(ROUNDS):
        parts = plan()
        spec = {**_spec(parts), "folder": folder, "lease_s": lease_s}
        digest = hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]
        state = agent.start("pull", run, digest, spec, _secrets(parts))
        ended = state.exit or agent.wait(run, "pull", _Rate(tell, parts), digest)
        if ended["outcome"] == "finished":
            names = dict.fromkeys(part.destination for part in parts)
            files = ended["result"]["files"].items()
            return {
                name: Pulled(str(path), int(each["size_bytes"]), str(each["sha256"]))
                for name, (path, each) in zip(names, files, strict=True)
            }
        code, failure = _failure(ended)
        if code not in AGAIN:
            break
    assert failure is not None
    raise failure


def _spec(parts: Sequence[Part]) -> dict[str, Any]:
    """What may be written down on the machine: no URL and no header."""
    return {
        "parts": [
            {
                "offset": part.offset,
                "size_bytes": part.size_bytes,
                "destination": part.destination,
                "sha256": part.sha256,
                "literal": None if part.literal is None else base64.b64encode(part.literal).decode(),
                "gap": part.gap,
                "before": base64.b64encode(part.before).decode(),
                "of_bytes": part.of_bytes,
            }
            for part in parts
        ]
    }


def _secrets(parts: Sequence[Part]) -> dict[str, Any]:
    return {"parts": [{"url": part.url, "headers": dict(part.headers)} for part in parts]}


class _Rate:
    """Turns the job's byte counts into a transfer's, with the rate of what moved since we look."""

    def __init__(self, tell: Tell, parts: Sequence[Part]) -> None:
        self.tell = tell
        self.name = parts[0].destination.rpartition("/")[2]
        self.first: tuple[float, int] | None = None

    def __call__(self, progress: Mapping[str, Any]) -> None:
        done, total = progress.get("bytes_done"), progress.get("bytes_total")
        if not isinstance(done, int) or not isinstance(total, int):
            return
        now = time.monotonic()
        self.first = self.first or (now, done)
        rate = (done - self.first[1]) / max(now - self.first[0], 1e-3)
        self.tell(Transfer(done, total, rate, (total - done) / rate if rate else None, self.name))


def _failure(ended: Mapping[str, Any]) -> tuple[str, GptctlError]:
    """The agent's code, and its words as our error."""
    lines = [str(line) for line in ended.get("last_lines") or ()]
    said = next((line for line in lines if ": " in line and " " not in line.partition(": ")[0]), "")
    code, _, message = said.partition(": ")
    message = message or str(ended.get("reason") or "the pull ended without a word")
    hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), "")
    if code == "disk-full":
        return code, MachineUnfit(message, hint)
    if code == "wrong-bytes":
        return code, VerificationFailed(message, hint)
    if code in ("source-refused", "source-lost"):
        return code, StorageError(message, hint or _advice(message))
    return code, AgentError(message, hint, code=code or "pull")


def _advice(message: str) -> str:
    if "ignores byte ranges" in message:
        return "parts of a file need a server with byte ranges (nginx, S3, the Hub); or download it and give its path"
    if " 403 " in message or " 401 " in message:
        return "the address or its signature ended, or the clock of this computer is wrong; then: gptctl resume"
    if " 404 " in message or " 416 " in message or "announced were" in message:
        return "the file there changed meanwhile; gptctl resume looks at it anew"
    return "can the machine reach that server? then: gptctl resume"
