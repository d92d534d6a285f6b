"""A job's files as a stream: every byte once, from the offsets the reader already has, and a heartbeat every 2 s.

Each round every file gets a share, so that a flood of log holds up neither metrics nor the news of a checkpoint.

It ends with the job, after the last byte. It must not buffer or interpret what it sends.

Example::

    follow(places, {"run": run, "job": "train", "offsets": {"metrics.jsonl": 4096}}, say)
"""

from __future__ import annotations

import base64
import os
import select
import time
from typing import Callable, Iterator, Mapping

from . import status
from .checkpoints import store_index
from .contract.answers import DataLine, ExitRecord
from .contract.names import HEARTBEAT_S, Code, LineKind, State
from .guard import attendance
from .job import fields, jobs
from .job.jobs import Job
from .queue import entries
from .system import files, lease, long_logs
from .system.paths import Places
from .system.refusal import Refusal, as_refusal

LOOK_S = 0.1
CHUNK_BYTES = 1 << 18
SHARE_BYTES = 1 << 20
"""Of one file in one round."""
Say = Callable[[Mapping[str, object]], None]


def follow(places: Places, request: Mapping[str, object], say: Say) -> None:
    """Says lines until the job has ended and everything was sent; stops without an end when the reader is gone."""
    job = fields.find_job(places, request)
    offsets = _offsets(job, fields.mapping(request, "offsets"))
    silence_s = fields.seconds(request, "silence_s") if request.get("silence_s") is not None else None
    beat, reader = _Heart(job, say), _Reader(silence_s)
    while reader.is_there():
        beat.beat()
        # Looked at before reading: what was written until the end was written by now.
        exit_record = beat.ended()
        for line in _fresh(job, offsets):
            say(line)
            beat.beat()
        if _is_behind(job, offsets):
            continue
        if exit_record is not None:
            attendance.record_call(places)  # the follower fetches now
            say({"kind": LineKind.ENDED, "exit": exit_record})
            return
        time.sleep(LOOK_S)


class _Reader:
    """The caller: with `silence_s` it keeps stdin open and sends newlines. A link that died without a word, or a
    laptop that sleeps, sends none; then the lease must not be renewed in its name."""

    def __init__(self, silence_s: float | None) -> None:
        self.silence_s = silence_s
        self.heard_at_s = time.monotonic()

    def is_there(self) -> bool:
        if self.silence_s is None:
            return True
        # Read first: what has long arrived counts, however late this process gets its turn.
        if select.select([0], [], [], 0)[0]:
            if not os.read(0, 4096):
                return False
            self.heard_at_s = time.monotonic()
        return time.monotonic() - self.heard_at_s < self.silence_s


class _Heart:
    """Beats in time, renews the lease while it does, and looks after a job whose supervisor died."""

    def __init__(self, job: Job, say: Say) -> None:
        self.job = job
        self.say = say
        self.beat_at_s = self.renewed_at_s = float("-inf")

    def beat(self) -> None:
        now_s = time.monotonic()
        if now_s - self.beat_at_s < HEARTBEAT_S:
            return
        self.beat_at_s = now_s
        attendance.attend(self.job.places, attendance.FOLLOWED_S)
        found = jobs.revive(self.job)
        store_index.revive(self.job.places, self.job.run)
        entries.revive(self.job.places)
        if found["state"] == State.LOST and not self.job.is_train:
            raise Refusal(
                Code.NEEDS_INPUT, "%s of run %s is gone without an end; start it again" % (self.job.name, self.job.run)
            )
        if now_s - self.renewed_at_s > lease.renew_every_s(self.job.lease_s):
            self.renewed_at_s = now_s
            self._renew()
        self.say(
            {"kind": LineKind.HEARTBEAT, "time_s": time.time(), "status": status.of_run(self.job.places, self.job.run)}
        )

    def _renew(self) -> None:
        """Without a lease where the disk is full: the follower still has to tell why the job died."""
        try:
            lease.renew(self.job.lease_folder, self.job.lease_s, None)
        except OSError as error:
            if as_refusal(error).code != Code.DISK_FULL:
                raise

    def ended(self) -> ExitRecord | None:
        return self.job.exit_record()


def _offsets(job: Job, given: Mapping[str, object]) -> dict[str, int]:
    """Where to begin in each followed file. Raises Refusal for a reader that has more than there is."""
    known = job.followed_files()
    offsets = dict.fromkeys(known, 0)
    for name, offset in given.items():
        if name not in known or not isinstance(offset, int) or offset < 0:
            raise Refusal(Code.BAD_REQUEST, "follow: no offset %r for %r; files: %s" % (offset, name, ", ".join(known)))
        size = files.size_bytes(known[name])
        if offset > size:
            message = "%s of run %s has %d bytes here, fewer than the %d asked from" % (name, job.run, size, offset)
            raise Refusal(
                Code.BAD_OFFSET, message, "the mirror is another run's, or the file was truncated on the machine"
            )
        offsets[name] = offset
    return offsets


def _fresh(job: Job, offsets: dict[str, int]) -> Iterator[DataLine]:
    """Data lines for what grew, of each file its share; moves the offsets, and past what a long log has dropped."""
    for name, path in job.followed_files().items():
        if files.size_bytes(path) <= offsets[name]:
            continue
        with open(path, "rb") as file:
            offset, end = long_logs.solid(file.fileno(), offsets[name])
            end = min(end, offset + SHARE_BYTES)
            file.seek(offset)
            while offset < end:
                chunk = file.read(min(CHUNK_BYTES, end - offset))
                if not chunk:
                    break
                data = base64.b64encode(chunk).decode()
                yield {"kind": LineKind.DATA, "file": name, "offset": offset, "data": data}
                offset += len(chunk)
            offsets[name] = offset


def _is_behind(job: Job, offsets: Mapping[str, int]) -> bool:
    return any(files.size_bytes(path) > offsets[name] for name, path in job.followed_files().items())
