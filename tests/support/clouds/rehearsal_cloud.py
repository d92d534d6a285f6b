"""A cloud to rehearse on for tests: the real program in a process of its own, with real machines behind real sshds.

with RehearsalCloud(tmp_path / "cloud") as cloud:
    instance_id = cloud.launch(name="gptctl-x")
    cloud.wait_for(instance_id, "active")
    cloud.ssh(instance_id, "echo hi").stdout
    cloud.books()["total_cents"]
"""

from __future__ import annotations

import getpass
import http.client
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Self

from orchestrator.rehearsal.__main__ import main
from orchestrator.rehearsal.books.books import read_books
from orchestrator.rehearsal.cloud import Cloud
from orchestrator.rehearsal.machines import daemon
from orchestrator.rehearsal.settings import Settings
from tests.support.clock.waiting import until
from tests.support.files.canary import command_lines
from tests.support.machines import known_interpreter
from tests.support.machines.sshd import fingerprint

API = "/api/v1"


class RehearsalCloud:
    """A context manager; leaving it ends the server and every machine. `state` holds its books."""

    def __init__(
        self,
        state: Path,
        *options: str,
        boot_s: float = 0.1,
        minute_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        warm: bool = False,
    ) -> None:
        """warm: new machines know which interpreter trains, as those of an image on which a run has been."""
        self.state = state
        self._env = env
        self._options = [f"--boot-s={boot_s}", f"--minute-s={minute_s}", "--linger-s=0.5", "--hang-s=0", *options]
        self._image = state.with_name(f"{state.name}-image") if warm else None
        self.entry: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._image is not None:
            known_interpreter.plant(self._image / ".gptctl")
            self._options.append(f"--image={self._image}")
        self.start()
        self.user_key = self.make_key("user_key")
        self.post("ssh-keys", {"name": "me", "public_key": self.user_key.with_suffix(".pub").read_text().strip()})
        return self

    def __exit__(self, *_: object) -> None:
        if self._env is None:
            self._stop_here()
        else:
            self.program("--stop", "--destroy")
        assert words_of_processes(f"{self.state.resolve()}/machines/") == []

    def _start_here(self, *options: str) -> dict[str, Any]:
        """What the program does, without a process that imports it all again for every test."""
        umask, printed = os.umask(0o077), io.StringIO()
        try:
            with redirect_stdout(printed):
                assert main(["--state", str(self.state), *options]) == 0
        finally:
            os.umask(umask)
        return dict(json.loads(printed.getvalue()))

    def _stop_here(self) -> None:
        """What --stop --destroy does, without a process that imports it all again for every test."""
        state = self.state.resolve()
        lock = daemon.stop(state)
        assert lock is not None
        try:
            Cloud(state, Settings()).terminate_all()
        finally:
            os.close(lock)

    def start(self) -> dict[str, Any]:
        """Starts it, or finds it."""
        options = ("--daemon", *self._options)
        self.entry = self.program(*options) if self._env is not None else self._start_here(*options)
        self.key = Path(self.entry["key_file"]).read_text().strip()
        return self.entry

    def program(self, *arguments: str) -> dict[str, Any]:
        """Runs the program and returns the JSON it prints."""
        done = rehearsal("--state", str(self.state), *arguments, env=self._env)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def make_key(self, name: str) -> Path:
        """An ed25519 pair beside the state."""
        file = self.state / name
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(file)]
        subprocess.run(make, check=True, timeout=80)
        return file

    # The API

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """(HTTP status, JSON); status 0 when the connection was closed without an answer. Follows no redirect."""
        url = path if path.startswith("/rehearsal") else f"{API}/{path}"
        connection = http.client.HTTPConnection(self.entry["url"].removeprefix("http://"), timeout=120)
        try:
            sent = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **(headers or {})}
            connection.request(method, url, None if body is None else json.dumps(body), sent)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return 0, {}
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The `data` of a good answer."""
        status, answer = self.ask("GET", path)
        assert status == 200, answer
        return answer["data"]

    def post(self, path: str, body: Any) -> Any:
        """The `data` of a good answer."""
        status, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return answer["data"]

    def order(self, **fields: Any) -> dict[str, Any]:
        """A valid launch request."""
        usual = {"region_name": "us-west-1", "instance_type_name": "gpu_8x_a100", "ssh_key_names": ["me"]}
        return {**usual, **fields}

    def launch(self, **fields: Any) -> str:
        """Buys one machine and returns its id."""
        return str(self.post("instance-operations/launch", self.order(**fields))["instance_ids"][0])

    def terminate(self, instance_id: str) -> Any:
        return self.post("instance-operations/terminate", {"instance_ids": [instance_id]})["terminated_instances"]

    def statuses(self) -> dict[str, str]:
        """Status by id, of all that are listed."""
        return {one["id"]: one["status"] for one in self.get("instances")}

    def wait_for(self, instance_id: str, status: str | None) -> None:
        """Until it has that status; None: until it is listed no more."""
        until(lambda: self.statuses().get(instance_id) == status)

    def up(self, **fields: Any) -> str:
        """A machine that is active."""
        instance_id = self.launch(**fields)
        self.wait_for(instance_id, "active")
        return instance_id

    # Behind the API

    def inject(self, faults: str) -> None:
        status, answer = self.ask("POST", "/rehearsal/inject", {"faults": faults})
        assert status == 200, answer

    def fired(self) -> list[str]:
        """Names of the faults that fired, in order."""
        return [one["name"] for one in self.ask("GET", "/rehearsal/faults")[1]["fired"]]

    def books(self) -> dict[str, Any]:
        """Read from the disk, without the server."""
        return read_books(self.state)

    def row(self, instance_id: str) -> dict[str, Any]:
        """One instance in the books."""
        return next(one for one in self.books()["instances"] if one["id"] == instance_id)

    def requests(self, path_end: str) -> list[dict[str, Any]]:
        """What the server's log says of requests to a path."""
        lines = (self.state / "requests.jsonl").read_text().splitlines()
        return [one for one in map(json.loads, lines) if one["path"].endswith(path_end)]

    # The machines

    def ssh(self, instance_id: str, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Runs a command there with the real ssh."""
        argv = [*self.ssh_argv(instance_id), *options, command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240, stdin=subprocess.DEVNULL)

    def ssh_argv(self, instance_id: str) -> list[str]:
        address = self.get(f"instances/{instance_id}")["ip"]
        options = {"UserKnownHostsFile": str(self.state / "known_hosts"), "StrictHostKeyChecking": "accept-new",
                   "IdentitiesOnly": "yes", "BatchMode": "yes", "ConnectTimeout": "10"}  # fmt: skip
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        login = f"{getpass.getuser()}@{address}"
        return ["ssh", "-F", "none", "-i", str(self.user_key), "-p", str(self.entry["ssh_port"]), *flags, login]

    def shown_host_key(self, instance_id: str) -> str:
        """SHA256:... of the key the machine shows."""
        address = self.get(f"instances/{instance_id}")["ip"]
        scan = ["ssh-keyscan", "-p", str(self.entry["ssh_port"]), "-t", "ed25519", address]
        shown = subprocess.run(scan, capture_output=True, text=True, check=True, timeout=80).stdout
        file = self.state / "shown.pub"
        file.write_text(" ".join(shown.split()[1:3]) + "\n")
        return fingerprint(file)

    def machine_folder(self, instance_id: str) -> Path:
        return self.state.resolve() / "machines" / instance_id[:12]

    def home(self, instance_id: str) -> Path:
        return self.machine_folder(instance_id) / "home"


def rehearsal(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the program."""
    argv = [sys.executable, "-m", "orchestrator.rehearsal", *arguments]
    return subprocess.run(
        argv, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False, timeout=240
    )


def processes_with(word: str) -> list[int]:
    """Living processes that have this word in their argv."""
    return [pid for pid, words in command_lines().items() if word in words]


def words_of_processes(prefix: str) -> list[str]:
    """Words of command lines of living processes that begin so."""
    return [word for words in command_lines().values() for word in words if word.startswith(prefix)]
