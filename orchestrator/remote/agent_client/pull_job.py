"""A machine pulls files on its own: parts become the agent's pull job, followed to its end.

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

from orchestrator.agent.contract.answers import Failure, PullResult
from orchestrator.agent.contract.names import LEASE_S, Code, JobName, Outcome
from orchestrator.core.errors import AgentError, GptctlError, MachineUnfit, StorageError, VerificationFailed
from orchestrator.core.ports import Part
from orchestrator.remote.agent_client import job_failure
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.agent_client.decoding import decoded, refuse
from orchestrator.remote.transfer_progress import Transfer

ROUNDS = 3
"""How often at most an address that ended is renewed and damaged bytes are fetched again."""
AGAIN = frozenset(
    {
        Code.SOURCE_DENIED,
        Code.SOURCE_CHANGED,
        Code.SOURCE_WITHOUT_RANGES,
        Code.SOURCE_REFUSED,
        Code.SOURCE_LOST,
        Code.NEEDS_INPUT,
        Code.WRONG_BYTES,
    }
)
ADVICE = {
    Code.SOURCE_WITHOUT_RANGES: (
        "parts of a file need a server with byte ranges (nginx, S3, the Hub); or download it and give its path"
    ),
    Code.SOURCE_DENIED: "the address or its signature ended, or this computer's clock is wrong; then: gptctl resume",
    Code.SOURCE_CHANGED: "the file there changed; gptctl resume asks the server again",
    Code.SOURCE_REFUSED: "check that the machine can reach that server, then: gptctl resume",
    Code.SOURCE_LOST: "check that the machine can reach that server, then: gptctl resume",
}
SOURCE_CODES = frozenset(ADVICE)
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
    """Destination, as the parts name it, to the file there. Calling again attaches, or finds everything there.

    folder: below which destinations are; absent: the agent's own. Raises StorageError when the source does not give
    it, VerificationFailed for wrong bytes, MachineUnfit for a full disk, LinkLost when the link breaks (call again).
    """
    error: GptctlError | None = None
    for _ in range(ROUNDS):
        parts = plan()
        spec = {**_spec(parts), "folder": folder, "lease_s": lease_s}
        digest = hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:16]
        state = agent.start(JobName.PULL, run, digest, spec, _secrets(parts))
        ended = state.exit or agent.wait(run, JobName.PULL, _Rate(tell, parts), digest)
        if ended["outcome"] == Outcome.FINISHED:
            names = dict.fromkeys(part.destination for part in parts)
            files = decoded(PullResult, ended["result"], "pull")["files"].items()
            if len(files) != len(names):
                raise refuse("pull", f"it brought {len(files)} files, asked for were {len(names)}")
            return {
                name: Pulled(path, file["size_bytes"], file["sha256"])
                for name, (path, file) in zip(names, files, strict=True)
            }
        failed = job_failure.failure(ended)
        error = _error(failed)
        if failed["code"] not in AGAIN:
            break
    assert error is not None
    raise error


def _spec(parts: Sequence[Part]) -> dict[str, object]:
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


def _secrets(parts: Sequence[Part]) -> dict[str, object]:
    return {"parts": [{"url": part.url, "headers": dict(part.headers)} for part in parts]}


class _Rate:
    """Turns the job's byte counts into a transfer's, with the rate of what moved since we look."""

    def __init__(self, tell: Tell, parts: Sequence[Part]) -> None:
        self.tell = tell
        self.name = parts[0].destination.rpartition("/")[2]
        self.first: tuple[float, int] | None = None

    def __call__(self, progress: Mapping[str, object]) -> None:
        done, total = progress.get("bytes_done"), progress.get("bytes_total")
        if not isinstance(done, int) or not isinstance(total, int):
            return
        now = time.monotonic()
        self.first = self.first or (now, done)
        rate = (done - self.first[1]) / max(now - self.first[0], 1e-3)
        self.tell(Transfer(done, total, rate, (total - done) / rate if rate else None, self.name))


def _error(failed: Failure) -> GptctlError:
    """The agent's refusal as our error."""
    code, message = failed["code"], failed["message"]
    hint = failed["hint"] or ADVICE.get(code, "")
    if code == Code.DISK_FULL:
        return MachineUnfit(message, hint)
    if code == Code.WRONG_BYTES:
        return VerificationFailed(message, hint)
    if code in SOURCE_CODES:
        return StorageError(message, hint)
    return AgentError(message, hint, code=code or "pull")
