"""A real S3 server on loopback: OpenStack Swift with its s3api, strict about signatures, part sizes and keys.

Four programs of Debian's packages and memcached, on free ports, one replica in one folder; all end with the fixture.

    def test_x(s3: S3Server, monkeypatch):
        s3.use(monkeypatch)                  # endpoint, key, secret and region into the environment
        name = s3.bucket({"a/x.bin": b"..."})        # a new bucket with that object
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.machines.sshd import dies_with_us

KEY, SECRET = "test:tester", "canary-s3-secret-84c1"
READER = "test:reader", "canary-s3-reader-77d0"
"""Key and secret of a user who may do in a bucket what its access list allows."""
REGION = "us-east-1"
START_S = 240.0
KINDS = {"account": 6202, "container": 6201, "object": 6200}
SYSTEM_PYTHON = "/usr/bin/python3"

STORAGE_CONF = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
devices = {devices}
mount_check = false
swift_dir = {conf}
user = {user}
log_level = ERROR
log_address = {conf}/no-log
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
conn_timeout = 20
node_timeout = 60
"""
"""Swift calls a server dead that does not take a connection within half a second; on a busy machine it only sleeps."""

PROXY_CONF = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {conf}
user = {user}
log_level = ERROR
log_address = {conf}/no-log
[pipeline:main]
pipeline = catch_errors proxy-logging cache s3api tempauth bulk slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
conn_timeout = 20
node_timeout = 60
post_quorum_timeout = 20
error_suppression_limit = 1000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
connect_timeout = 20
io_timeout = 60
[filter:s3api]
use = egg:swift#s3api
s3_acl = true
check_bucket_owner = false
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
user_test_reader = {reader}
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""

SWIFT_CONF = """
[swift-hash]
swift_hash_path_suffix = gptctl
swift_hash_path_prefix = tests
[storage-policy:0]
name = one
default = yes
[swift-constraints]
max_file_size = 5368709122
"""


RINGS = """
import sys
from swift.common.ring import RingBuilder
for kind, port in (word.split("=") for word in sys.argv[2:]):
    builder = RingBuilder(1, 1, 0)
    place = {"ip": "127.0.0.1", "port": int(port), "replication_ip": "127.0.0.1", "replication_port": int(port)}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "device": "d1", "weight": 1.0, "meta": "", **place})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{kind}.ring.gz")
"""
"""One partition, one replica, one device. In one process: swift-ring-builder is nine of them, and most of the start."""


class S3Server:
    """Up while the block lasts. One account (KEY, SECRET); buckets are the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "conf"
        self.devices = folder / "devices"
        self.ports = {name: _free_port() for name in (*KINDS, "proxy", "memcached")}
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    def environment(self) -> dict[str, str]:
        """What boto3 and gptctl need to find it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sets the environment of this process and of what it starts, and nothing of the developer's own."""
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_CREDENTIAL_EXPIRATION"):
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, str(self.folder / "none"))
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)

    def client(self, secret: str = SECRET) -> Any:
        """A boto3 client of its own."""
        settings = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=secret,
            region_name=REGION,
            config=settings,
        )

    def bucket(self, files: Mapping[str, bytes] | None = None) -> str:
        """A new bucket with these objects; returns its name."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        client = self.client()
        client.create_bucket(Bucket=name)
        for key, content in (files or {}).items():
            client.put_object(Bucket=name, Key=key, Body=content)
        return name

    def __enter__(self) -> Self:
        self._write_settings()
        self._start(
            "memcached", ["memcached", "-l", "127.0.0.1", "-p", str(self.ports["memcached"]), "-U", "0", *_as_user()]
        )
        for name in (*KINDS, "proxy"):
            self._start_swift(name)
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            with_group_killed(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nothing listens where it was."""
        proxy = self.processes.pop()
        with_group_killed(proxy)
        try:
            yield
        finally:
            self._start_swift("proxy")
            self._wait()

    def _write_settings(self) -> None:
        self.conf.mkdir(parents=True)
        (self.devices / "d1").mkdir(parents=True)
        (self.conf / "swift.conf").write_text(SWIFT_CONF)
        known: Mapping[str, object] = {
            "conf": self.conf,
            "devices": self.devices,
            "user": _user(),
            "memcached": self.ports["memcached"],
            "region": REGION,
            "secret": SECRET,
            "reader": READER[1],
        }
        for kind in KINDS:
            text = STORAGE_CONF.format(kind=kind, port=self.ports[kind], **known)
            (self.conf / f"{kind}-server.conf").write_text(text)
        (self.conf / "proxy-server.conf").write_text(PROXY_CONF.format(port=self.ports["proxy"], **known))
        rings = [f"{kind}={self.ports[kind]}" for kind in KINDS]
        subprocess.run([SYSTEM_PYTHON, "-c", RINGS, str(self.conf), *rings], check=True, capture_output=True)

    def _start_swift(self, name: str) -> None:
        program = shutil.which(f"swift-{name}-server", path=f"{os.environ['PATH']}:/usr/bin")
        assert program, "run .ci/system-packages: swift is not installed"
        self._start(name, [SYSTEM_PYTHON, program, str(self.conf / f"{name}-server.conf")])

    def _start(self, name: str, argv: list[str]) -> None:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        with (self.conf / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [*dies_with_us(), *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
            )

    def _wait(self) -> None:
        """Until an object can be put: a proxy that answers says nothing of the three servers behind it."""
        ends, said = time.monotonic() + START_S, ""
        while time.monotonic() < ends:
            try:
                self.bucket({"ready": b""})
            except (ClientError, BotoCoreError) as error:
                said = str(error)
                time.sleep(0.05)
            else:
                return
        logs = "\n".join(path.read_text()[-2000:] for path in sorted(self.conf.glob("*.log")))
        self.__exit__()
        raise AssertionError(f"swift takes no object: {said}: {logs}")


def with_group_killed(process: subprocess.Popen[bytes]) -> None:
    """Ends it and what it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _user() -> str:
    return subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()


def _as_user() -> list[str]:
    return ["-u", _user()] if os.geteuid() == 0 else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":  # by hand: a server until Enter
    with S3Server(Path(sys.argv[1])) as by_hand:
        print(by_hand.environment())
        input()
