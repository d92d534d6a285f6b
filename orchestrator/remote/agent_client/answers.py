"""What the agent answers, as values. Whatever comes from the machine is checked here before anybody uses it.

It must not talk to a machine; remote/agent_client/client.py does.

Example::

    line = {"kind": "data", "file": "train.log", "offset": 0, "data": "aGk="}
    follow_line(line, ["train.log"])     # Data("train.log", 0, b"hi")
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.agent.contract.answers import (
    CheckpointEntry,
    DataLine,
    EndedLine,
    ExitRecord,
    HeartbeatLine,
    PromisedFile,
    RunStatus,
    StartAnswer,
)
from orchestrator.agent.contract.names import FileName, JobName, LineKind
from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.errors import AgentError
from orchestrator.core.safe_names import stays_inside
from orchestrator.remote.agent_client.decoding import decoded, refuse
from trainer import run_files
from trainer.run_files import checkpoint_name

MOST_NAME_BYTES = 255
"""What file systems take."""

FOLLOWED = {JobName.TRAIN: (run_files.METRICS, run_files.EVENTS, run_files.LOG)}
"""What `follow` streams of a training; of any other job it is its progress and its log."""


@dataclass(frozen=True)
class JobState:
    """What `start` found or made: state is `started`, `running` or `ended`; exit is the job's exit.json once ended."""

    job: str
    run: str
    state: str
    digest: str
    exit: ExitRecord | None = None


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
    status: RunStatus


@dataclass(frozen=True)
class Ended:
    """The job ended, and every byte of its files has been sent."""

    exit: ExitRecord


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


def job_state(answer: Mapping[str, object]) -> JobState:
    """The answer to `start`."""
    found = decoded(StartAnswer, answer, "start")
    return JobState(found["job"], found["run"], found["state"], found["digest"], found["exit"])


def followed_files(job: str) -> Collection[str]:
    """The names that Data lines of this job may have: each becomes a file on this side."""
    return FOLLOWED.get(job, (FileName.PROGRESS, FileName.LOG))


def follow_line(answer: Mapping[str, object], files: Collection[str]) -> FollowLine:
    """One line of `follow`. Raises AgentError for a file that is not one of `files`, and for a damaged line."""
    kind = answer.get("kind")
    if kind == LineKind.DATA:
        return _data(decoded(DataLine, answer, "follow"), files)
    if kind == LineKind.ENDED:
        return Ended(decoded(EndedLine, answer, "follow")["exit"])
    beat = decoded(HeartbeatLine, answer, "follow")
    return Heartbeat(float(beat["time_s"]), beat["status"])


def _data(line: DataLine, files: Collection[str]) -> Data:
    if line["file"] not in files:
        raise refuse("follow", f"it sent {line['file']!r}, which is not one of {', '.join(files)}; nothing was written")
    if line["offset"] < 0:
        raise refuse("follow", f"it sent bytes of {line['file']} from {line['offset']} on")
    try:
        return Data(line["file"], line["offset"], base64.b64decode(line["data"], validate=True))
    except (binascii.Error, ValueError) as error:
        raise AgentError(f"agent follow: a damaged line of {line['file']}: {error}", code="damaged") from error


def checkpoint(value: Mapping[str, object]) -> Checkpoint:
    """Checks every name before anybody makes a path of it: the machine is not trusted with our disk."""
    entry = decoded(CheckpointEntry, value, "manifest")
    step, name = entry["step"], entry["name"]
    if step < 0 or name != checkpoint_name(step):
        raise AgentError(f"agent manifest: {name!r} is not the folder of step {step}", code="bad-name")
    _check_files(name, entry["files"])
    if entry["manifest_size_bytes"] < 0:
        raise refuse("manifest", f"{name} has a manifest of {entry['manifest_size_bytes']} bytes")
    return Checkpoint(
        step,
        name,
        {key: FileEntry(promised["size_bytes"], promised["sha256"]) for key, promised in entry["files"].items()},
        entry["manifest_sha256"],
        entry["manifest_size_bytes"],
        kept=entry.get("kept", False),
        best=entry.get("best", False),
        latest=entry.get("latest", False),
        safe=entry["safe"],
    )


def _check_files(folder: str, files: Mapping[str, PromisedFile]) -> None:
    for name, promised in files.items():
        if promised["size_bytes"] < 0:
            raise refuse("manifest", f"{folder}/{name[:60]} has {promised['size_bytes']} bytes")
        if name.startswith(".") or "/" in name or not stays_inside(name, most_bytes=MOST_NAME_BYTES):
            raise AgentError(
                f"agent manifest: {folder} lists {name[:60]!r}, which is not a plain file name",
                hint="the machine's checkpoint folder was tampered with; nothing was fetched",
                code="bad-name",
            )
