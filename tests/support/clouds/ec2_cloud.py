"""EC2 on loopback: moto's server, a layer in front of it for what moto lacks, and a real sshd for every instance.

The layer keeps its own books (the oracle of purchases and of money), makes ClientToken idempotent, refuses, loses
answers, shows new instances late, answers for the price list, and brings machines up and down as instances come and go:
with their user data applied, and ended when they power themselves off, if their launch said so.

    with Ec2Cloud(tmp_path) as cloud:
        cloud.inject("RunInstances", "InsufficientInstanceCapacity")      # the next launch only
        subprocess.run([...], env={**os.environ, **cloud.env})
        assert cloud.living() == []
"""

from __future__ import annotations

import base64
import getpass
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from unittest import mock

import boto3
from werkzeug.serving import WSGIRequestHandler, make_server

from orchestrator.core.machines import bundled_offers_of
from orchestrator.rehearsal.machines import machine as machines
from orchestrator.rehearsal.machines.disk import Disk, write_disk
from tests.conftest import REPOSITORY
from tests.support.machines import known_interpreter, programs
from tests.support.machines.sshd import free_address

REGION, OTHER_REGION = "us-east-1", "us-west-2"
IMAGE, IMAGE_NAME = "ami-0d1ab1e5", "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20260901"
VALIDATION = {
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "1",
    "MOTO_ENABLE_KEYPAIR_VALIDATION": "1",
    "MOTO_ENABLE_AMI_VALIDATION": "1",
}
FAULT = (
    "<Response><Errors><Error><Code>{code}</Code><Message>{text}</Message></Error></Errors>"
    "<RequestID>x</RequestID></Response>"
)
LOST, CANARY = "lost", "canary-aws-secret-5f0e"
LOOK_EVERY_S = 0.1
SPOT_PRICE = 0.06


@dataclass
class Fault:
    """What goes wrong with the next calls of an action. `code` LOST: the connection closes without an answer."""

    action: str
    code: str
    text: str = "injected"
    status: int = 400
    times: int = 1
    after: bool = False
    """Only the answer goes wrong: what was asked for has been done."""


@dataclass
class Bought:
    """One instance in the books: what it was bought for, and the seconds it was billed."""

    id: str
    token: str
    began_at: float
    price_per_hour_usd: float
    ended_at: float | None = None

    @property
    def billed_s(self) -> float:
        return max(60.0, (self.ended_at or time.time()) - self.began_at)

    @property
    def cost_usd(self) -> float:
        return self.billed_s * self.price_per_hour_usd / 3600


@dataclass
class Ec2Cloud:
    """A context manager. `env`: what makes gptctl use it; `caller`: the address it tells whoever asks for theirs."""

    folder: Path
    caller: str = "127.0.0.1"
    lag_s: float = 0.0
    warm: bool = False
    """Whether machines know which interpreter trains, as those of an image on which a run has been."""
    books: list[Bought] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    prices: dict[str, float] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    fired: list[Fault] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    on_call: Callable[[str, str], None] = lambda action, when: None
    """Told of every call, `before` it has an effect and `after`."""
    _orders: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    _disks: dict[str, Disk] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.port = free_address()[1]
        self._patches = [
            mock.patch.dict(os.environ, {**VALIDATION, "AWS_DEFAULT_REGION": REGION}),
            mock.patch("moto.ec2.models.elastic_network_interfaces.random_public_ip", lambda: free_address()[0]),
        ]
        for patch in self._patches:
            patch.start()
        self._seed()
        # Only now: moto costs every worker seconds, and few tests ask for it.
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.prices = {offer.sku: offer.price_per_hour_usd for offer in bundled_offers_of("ec2")}
        for loop in (self._server.serve_forever, self._look_after_machines):
            threading.Thread(target=loop, daemon=True).start()
        self._make_home()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        for disk in [*self._disks.values()]:
            machines.destroy(disk)
        self.backend.reset()
        for patch in reversed(self._patches):
            patch.stop()

    @property
    def backend(self) -> Any:
        """moto's model of the region."""
        from moto.backends import get_backend
        from moto.core import DEFAULT_ACCOUNT_ID

        return get_backend("ec2")[DEFAULT_ACCOUNT_ID][REGION]

    def _seed(self) -> None:
        from moto.backends import get_backend
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.ec2.models.amis import Ami

        for region in (REGION, OTHER_REGION):
            backend = get_backend("ec2")[DEFAULT_ACCOUNT_ID][region]
            backend.amis[IMAGE] = Ami(
                backend, IMAGE, name=IMAGE_NAME, owner_id="898082745236", owner_alias="amazon",
                virtualization_type="hvm", architecture="x86_64", description="a driver and nothing else",
            )  # fmt: skip

    def _make_home(self) -> None:
        home, user = self.folder / "home", self.folder / "user-home"
        for each in (home, user):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "config.toml").write_text(f'[aws]\ncaller_address_url = "{self.url}/checkip"\nsettle_s = 4\n')
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))}
        self.env = {
            **kept, "GPTCTL_HOME": str(home), "HOME": str(user), "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1", "AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    # What a test asks for

    def inject(self, action: str, code: str, **more: Any) -> None:
        """The next call of this action (`*`: of any) goes wrong."""
        self.faults.append(Fault(action, code, **more))

    def host_entry(self, name: str = "cloud", machine: str = "2xCPU", more: str = "") -> str:
        """A table for inventory.toml."""
        return (
            f'[hosts.{name}]\nprovider = "ec2"\nmachine = "{machine}"\nregions = ["{REGION}"]\nport = {self.port}\n'
            f'user = "{getpass.getuser()}"\npython = "{sys.executable}"\nmax_cost_usd = 10\n{more}\n'
        )

    def gptctl(self, *args: str, deadline_s: float = 720) -> subprocess.CompletedProcess[str]:
        """Runs the real command line against this cloud."""
        return programs.run_gptctl(*args, cwd=self.folder, env=self.env, deadline_s=deadline_s)

    def client(self, service: str = "ec2") -> Any:
        """The console's way in: not gptctl's."""
        return boto3.client(
            service, region_name=REGION, endpoint_url=self.url, aws_access_key_id="console", aws_secret_access_key="x"
        )

    def living(self) -> list[str]:
        """Instances that are billed, by the books."""
        return [each.id for each in self.books if each.ended_at is None]

    def left(self) -> dict[str, int]:
        """What is in the account that somebody may pay for or trip over."""
        client = self.client()
        states = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
        groups = client.describe_security_groups()["SecurityGroups"]
        return {
            "instances": sum(
                len(each["Instances"]) for each in client.describe_instances(Filters=states)["Reservations"]
            ),
            "volumes": len(client.describe_volumes()["Volumes"]),
            "security groups": sum(each["GroupName"] != "default" for each in groups),
        }

    def buys_per_token(self) -> int:
        """The most that one intent bought."""
        return max(Counter(each.token for each in self.books).values(), default=0)

    def machine(self) -> str:
        """The one living instance."""
        (found,) = self.living()
        return found

    def group(self) -> dict[str, Any]:
        """The one security group beside the default one."""
        found = self.client().describe_security_groups()["SecurityGroups"]
        (ours,) = [each for each in found if each["GroupName"] != "default"]
        return dict(ours)

    def open_to(self) -> set[str]:
        """Who may come in."""
        return {each["CidrIp"] for rule in self.group()["IpPermissions"] for each in rule["IpRanges"]}

    def drop_sessions(self, instance_id: str) -> None:
        """Every SSH connection to it breaks; what runs there goes on."""
        machines.drop_sessions(self._disks[instance_id])

    def folder_of(self, instance_id: str) -> Path:
        """The home folder on that machine."""
        return self._disks[instance_id].home

    def take_away(self, instance_id: str) -> None:
        """The spot market needs it: what AWS does two minutes after its notice."""
        self._end(
            instance_id, "Server.SpotInstanceTermination: Spot instance termination", "Server.SpotInstanceTermination"
        )

    def end_from_console(self, instance_id: str) -> None:
        """Somebody presses the button."""
        self.client().terminate_instances(InstanceIds=[instance_id])
        self._ended(instance_id)

    def stop_from_console(self, instance_id: str) -> None:
        """Off, and not ended: its volume is billed on."""
        self.client().stop_instances(InstanceIds=[instance_id])
        machines.kill(self._disks[instance_id])

    # The layer

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        environ["wsgi.input"] = _Input(body)
        if environ["PATH_INFO"] == "/checkip":
            return _reply(start, 200, self.caller.encode() + b"\n", "text/plain")
        form = dict(urllib.parse.parse_qsl(body.decode("utf-8", "replace")))
        target = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        action = form.get("Action") or target
        mine = "Credential=testing" in environ.get("HTTP_AUTHORIZATION", "")
        if not mine:
            return list(self._moto(environ, start))
        with self._lock:
            service = {"GetProducts": "pricing", "GetParameter": "ssm"}.get(action, "ec2")
            self.actions.append(f"{service}:{action}")
            fault = self._fault(action)
        self.on_call(action, "before")
        if fault and not fault.after:
            return self._fail(fault, environ, start, bool(target))
        answer = self._done(action, form, environ, body)
        self.on_call(action, "after")
        if fault:
            return self._fail(fault, environ, start, bool(target))
        return _reply(start, *answer)

    def _fault(self, action: str) -> Fault | None:
        for fault in self.faults:
            if fault.action in (action, "*"):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                self.fired.append(fault)
                return fault
        return None

    def _fail(self, fault: Fault, environ: dict[str, Any], start: Callable[..., Any], is_json: bool) -> Iterable[bytes]:
        if fault.code == LOST:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if is_json:
            told = json.dumps({"__type": fault.code, "message": fault.text}).encode()
            return _reply(start, fault.status, told, "application/x-amz-json-1.1")
        return _reply(start, fault.status, FAULT.format(code=fault.code, text=fault.text).encode(), "text/xml")

    def _done(
        self, action: str, form: Mapping[str, str], environ: dict[str, Any], body: bytes
    ) -> tuple[int, bytes, str]:
        """What the real one would answer."""
        if action == "GetProducts":
            return 200, self._price_list(json.loads(body)), "application/x-amz-json-1.1"
        if action == "GetParameter":
            told = {"Parameter": {"Name": json.loads(body)["Name"], "Type": "String", "Value": IMAGE, "Version": 1}}
            return 200, json.dumps(told).encode(), "application/x-amz-json-1.1"
        if action == "RunInstances":
            return self._run_instances(form, environ)
        status, answer, kind = self._through(environ)
        if action == "TerminateInstances" and status == 200:
            for instance_id in re.findall(rb"<instanceId>(i-[0-9a-f]+)<", answer):
                self._ended(instance_id.decode())
        if action == "DescribeSpotPriceHistory":
            answer = re.sub(rb"<spotPrice>[0-9.]+<", f"<spotPrice>{SPOT_PRICE}<".encode(), answer)
        if action == "DescribeInstances":
            status, answer = self._hide_new(form, status, answer)
        return status, answer, kind

    def _run_instances(self, form: Mapping[str, str], environ: dict[str, Any]) -> tuple[int, bytes, str]:
        token = form["ClientToken"]
        asked = urllib.parse.urlencode(sorted(form.items()))
        with self._lock:
            if token in self._orders:
                before, answer = self._orders[token]
                if before != asked:
                    told = FAULT.format(code="IdempotentParameterMismatch", text="same token, other parameters")
                    return 400, told.encode(), "text/xml"
                return 200, answer, "text/xml"
            status, answer, kind = self._through(environ)
            if status == 200:
                (found,) = re.findall(rb"<instanceId>(i-[0-9a-f]+)<", answer)
                spot = form.get("InstanceMarketOptions.MarketType") == "spot"
                price = SPOT_PRICE if spot else self.prices[form["InstanceType"]]
                self.books.append(Bought(found.decode(), token, time.time(), price))
                self._orders[token] = (asked, answer)
                threading.Thread(target=self._bring_up, args=(found.decode(),), daemon=True).start()
            return status, answer, kind

    def _through(self, environ: dict[str, Any]) -> tuple[int, bytes, str]:
        told: dict[str, Any] = {}

        def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], None]:
            told.update(status=int(status.split(maxsplit=1)[0]), kind=dict(headers).get("Content-Type", "text/xml"))
            return lambda _: None

        answer = b"".join(self._moto(environ, start))
        return told["status"], answer, told["kind"]

    def _hide_new(self, form: Mapping[str, str], status: int, answer: bytes) -> tuple[int, bytes]:
        """Eventual consistency: what is younger than lag_s is in no list, and its id is not known."""
        new = [each.id for each in self.books if time.time() - each.began_at < self.lag_s]
        if any(form.get(name) in new for name in form if name.startswith("InstanceId")):
            return 400, FAULT.format(code="InvalidInstanceID.NotFound", text="does not exist").encode()
        text = answer.decode()
        for instance_id in new:
            item = rf"<item>\s*<reservationId>(?:(?!<reservationId>).)*?{instance_id}.*?</instancesSet>\s*</item>"
            text = re.sub(item, "", text, flags=re.S)
        return status, text.encode()

    def _price_list(self, asked: Mapping[str, Any]) -> bytes:
        wanted = {each["Field"]: each["Value"] for each in asked["Filters"]}
        sku = wanted["instanceType"]
        rows = []
        for region, more in ((REGION, 1.0), (OTHER_REGION, 1.0), ("eu-west-1", 1.1)):
            price = {
                "priceDimensions": {"x": {"unit": "Hrs", "pricePerUnit": {"USD": f"{self.prices[sku] * more:.10f}"}}}
            }
            told = {"instanceType": sku, "regionCode": region, "marketoption": "OnDemand"}
            rows.append(json.dumps({"product": {"attributes": told}, "terms": {"OnDemand": {"t": price}}}))
        return json.dumps({"FormatVersion": "aws_v1", "PriceList": rows}).encode()

    # The machines

    def _bring_up(self, instance_id: str) -> None:
        instance = self.backend.get_instance(instance_id)
        disk = Disk(self.folder / "machines" / instance_id, instance.public_ip, self.port, sys.executable)
        key = self.backend.key_pairs[instance.key_name].material_public.decode()
        given = instance.user_data or ""
        text = base64.b64decode(str(given)).decode() if not str(given).startswith("#") else str(given)
        write_disk(disk, key, text)
        if self.warm:
            known_interpreter.plant(disk.home / ".gptctl")
        self._disks[instance_id] = disk
        machines.power_on(disk)

    def _look_after_machines(self) -> None:
        """A machine that powered itself off is ended, or only stopped, as its launch said."""
        while not self._over.wait(LOOK_EVERY_S):
            for instance_id, disk in [*self._disks.items()]:
                if instance_id in self.living() and machines.was_shut_down(disk):
                    self._powered_off(instance_id)

    def _powered_off(self, instance_id: str) -> None:
        instance = self.backend.get_instance(instance_id)
        if instance.instance_initiated_shutdown_behavior == "terminate":
            said = "Client.InstanceInitiatedShutdown: Instance initiated shutdown"
            self._end(instance_id, said, "Client.InstanceInitiatedShutdown")
        else:
            instance.stop()

    def _end(self, instance_id: str, text: str, code: str) -> None:
        from moto.ec2.models.instances import StateReason

        instance = self.backend.get_instance(instance_id)
        self.backend.terminate_instances([instance_id])
        instance.state_reason = StateReason(text, code)
        self._ended(instance_id)

    def _ended(self, instance_id: str) -> None:
        for each in self.books:
            if each.id == instance_id and each.ended_at is None:
                each.ended_at = time.time()
                if instance_id in self._disks:
                    threading.Thread(target=machines.destroy, args=(self._disks[instance_id],), daemon=True).start()


class _Silent(WSGIRequestHandler):
    """No line per request, and none for a connection that is closed on purpose."""

    def log(self, *_: Any) -> None:
        pass


class _Input:
    """The body of a request, which is read twice."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def read(self, size: int = -1) -> bytes:
        taken, self.body = (self.body, b"") if size < 0 else (self.body[:size], self.body[size:])
        return taken


def _reply(start: Callable[..., Any], status: int, body: bytes, kind: str) -> Iterable[bytes]:
    start(
        f"{status} {'OK' if status == 200 else 'Error'}", [("Content-Type", kind), ("Content-Length", str(len(body)))]
    )
    return [body]
