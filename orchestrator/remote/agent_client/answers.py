"""What the agent answers, as values. Whatever comes from the machine is checked here before anybody uses it.

It must not talk to a machine; remote/agent_client/client.py does.

Example::

    follow_line({"kind": "data", "file": "train.log", "offset": 0, "data": "aGk="})     # Data("train.log", 0, b"hi")
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.errors import AgentError
from trainer.contract import MANIFEST_FILE, checkpoint_name


@dataclass(frozen=True)
class JobState:
    """What `start` found or made: state is `started`, `running` or `ended`; exit is the job's exit.json once ended."""

    job: str
    run: str
    state: str
    digest: str
    exit: dict[str, Any] | None = None


@dataclass(frozen=True)
class Data:
    """Bytes of a followed file, from `offset` on."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Heartbeat:
    """The machine is alive at `time_s` (its UTC clock); `status` is this run's entry of the status verb."""

    time_s: float
    status: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """The job ended, and every byte of its files has been sent."""

    exit: dict[str, Any]


FollowLine: TypeAlias = Data | Heartbeat | Ended


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the machine. Names were checked: one folder deep, nothing that leads elsewhere."""

    step: int
    name: str
    files: Mapping[str, FileEntry]
    manifest_sha256: str
    manifest_size_bytes: int
    kept: bool = False
    best: bool = False
    latest: bool = False
    safe: bool = False

    @property
    def size_bytes(self) -> int:
        """Of all listed files."""
        return sum(entry.size_bytes for entry in self.files.values())


def json_object(line: bytes) -> dict[str, Any] | None:
    """The object on a line; None for anything else, such as the greeting of a talkative login shell."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def follow_line(answer: Mapping[str, Any]) -> FollowLine:
    kind = answer.get("kind")
    if kind == "data":
        try:
            return Data(str(answer["file"]), int(answer["offset"]), base64.b64decode(answer["data"], validate=True))
        except binascii.Error as error:
            raise AgentError(f"agent follow: a damaged line of {answer['file']}: {error}", code="damaged") from error
    if kind == "ended":
        return Ended(answer["exit"])
    return Heartbeat(float(answer["time_s"]), answer.get("status") or {})


def checkpoint(value: Mapping[str, Any]) -> Checkpoint:
    """Checks every name before anybody makes a path of it: the machine is not trusted with our disk."""
    step, name = int(value["step"]), str(value["name"])
    if name != checkpoint_name(step):
        raise AgentError(f"agent manifest: {name!r} is not the folder of step {step}", code="bad-name")
    _check_names(name, [*value["files"], MANIFEST_FILE])
    files = {key: FileEntry(int(entry["size_bytes"]), str(entry["sha256"])) for key, entry in value["files"].items()}
    flags = {key: bool(value.get(key)) for key in ("kept", "best", "latest", "safe")}
    return Checkpoint(step, name, files, str(value["manifest_sha256"]), int(value["manifest_size_bytes"]), **flags)


def _check_names(folder: str, names: Iterable[str]) -> None:
    for name in names:
        if not name or name.startswith(".") or "/" in name or "\0" in name or "\n" in name:
            raise AgentError(
                f"agent manifest: {folder} lists {name!r}, which is no plain file name",
                hint="the machine's checkpoint folder was tampered with; nothing was fetched",
                code="bad-name",
            )
