"""Files on a home box, read from here over SSH: what its agent kept of a run. Writing there is the agent's work.

Example::

    storage = HomeBoxStorage(box, connect)
    storage.read("ssh://nas/mnt/models/RUN/CHECKPOINTS.json", 0, 1 << 20)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.config.home_box import HomeBox, parts
from orchestrator.core.errors import StorageError, Unreachable, UserError
from orchestrator.core.ports import Address, Part, Shell, StoredFile, Upload
from orchestrator.core.typed_json import decode
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.agent_client.decoding import last_object
from orchestrator.remote.far_python import far_python
from orchestrator.remote.transfer import transfer
from orchestrator.remote.transfer_progress import Listener

MISSING = 44
READ = """\
import sys
try:
    with open(sys.argv[1], "rb") as file:
        file.seek(int(sys.argv[2]))
        sys.stdout.buffer.write(file.read(int(sys.argv[3])))
except FileNotFoundError:
    sys.exit(44)
"""
LOOK = """\
import json, os, shutil, sys
os.umask(0o077)
path = sys.argv[1]
try:
    os.makedirs(path, 0o700, exist_ok=True)
    probe = os.path.join(path, ".gptctl-check-%d" % os.getpid())
    with open(probe, "wb") as file:
        file.write(b"gptctl")
    os.unlink(probe)
    problem = None
except OSError as error:
    problem = error.strerror or str(error)
free = None if problem else shutil.disk_usage(path).free
memory = os.access("/dev/shm", os.W_OK)
print(json.dumps({"problem": problem, "free_bytes": free, "ssh": shutil.which("ssh"), "memory": memory}))
"""


@dataclass(frozen=True)
class Look:
    """What LOOK found on the box; free_bytes of the folder's disk."""

    problem: str | None
    ssh: str | None
    memory: bool
    free_bytes: int = 0


def look_state(said: bytes, uri: str) -> Look:
    """What LOOK printed, after whatever a talkative login shell did. Raises StorageError for anything else."""
    try:
        return decode(Look, last_object(said), lenient=True)
    except ValueError as error:
        raise StorageError(f"{uri}: the box answers {said[-60:]!r}: {error}", "log in there once with ssh") from error


class HomeBoxStorage:
    """The box as a place to read from. A machine cannot pull from it: that is what `pull` is for."""

    scheme = "ssh"

    def __init__(self, box: HomeBox, connect: Callable[[Address], Shell]) -> None:
        self.box = box
        self._connect = connect

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        """A connection of its own, closed at the end."""
        try:
            shell = self._connect(self.box.address)
        except Unreachable as error:
            raise Unreachable(f"home box {self.box.name}: {error.message}", error.hint) from error
        try:
            yield shell
        finally:
            shell.close()

    def read(self, uri: str, start: int, size_bytes: int) -> bytes:
        with self.shell() as shell:
            argv = [far_python(shell), "-I", "-S", "-c", READ, parts(uri)[1], str(start), str(size_bytes)]
            found = shell.run(argv, deadline_s=60.0)
        if found.code == MISSING:
            raise StorageError(f"{uri}: nothing found", "correct the address", missing=True)
        if found.code:
            said = found.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"code {found.code}"]
            raise StorageError(f"{uri}: cannot be read: {said[0]}", f"look at it: ssh {self.box.address.host}")
        return found.stdout

    def check(self, uri: str, needs_bytes: int) -> None:
        """The folder can be written to and has room, and there is what the agent needs. Raises StorageError."""
        folder = parts(uri)[1]
        with self.shell() as shell:
            Agent(shell, self.box.agent_folder).ensure()
            argv = [far_python(shell), "-I", "-S", "-c", LOOK, folder]
            found = look_state(shell.run(argv, deadline_s=30.0).stdout, uri)
        name = self.box.name
        if found.problem:
            raise StorageError(f"{uri}: {name} cannot write to {folder}: {found.problem}", "choose another folder")
        if found.ssh is None:
            raise StorageError(f"{uri}: {name} has no ssh to call machines with", "install OpenSSH's client there")
        if not found.memory:
            raise StorageError(f"{uri}: {name} has no /dev/shm: a key would have to lie on its disk", "use a Linux box")
        if needs_bytes > found.free_bytes:
            raise StorageError(
                f"{uri}: {needs_bytes / 1e9:.1f} GB are needed there, and {found.free_bytes / 1e9:.1f} GB free",
                "free some space there, keep fewer checkpoints (train.keep_last), or choose another folder",
            )

    def pull(self, uri: str, files: Mapping[str, FileEntry], folder: Path, tell: Listener) -> None:
        """These files of the folder `uri` come into `folder` on this side, verified; what is here already stays."""
        with self.shell() as shell:
            transfer.pull_files(shell, parts(uri)[1], folder, files, tell)

    def manifest(self, uri: str) -> Sequence[StoredFile]:
        raise UserError(f"{uri}: a home box keeps checkpoints, and no data", "name a path, s3://, hf:// or https://")

    def download_plan(
        self, uri: str, destination: str, start: int = 0, size_bytes: int | None = None, expires_s: float = 21_600
    ) -> Part:
        raise UserError(f"{uri}: a machine cannot pull from a home box", "bring it here first: gptctl fetch RUN")

    def upload_plan(self, uri: str, files: Sequence[StoredFile], expires_s: float = 21_600) -> Sequence[Upload]:
        raise UserError(f"{uri}: nothing is stored there by URLs", "it is the box that calls")

    def grants_end_at(self) -> float | None:
        """Its key does not end."""
        return None
