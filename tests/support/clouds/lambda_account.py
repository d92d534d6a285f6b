"""The lambda provider on a real rehearsal cloud, with every request and answer kept for whoever wants to look.

with RehearsalCloud(tmp_path / "cloud") as cloud:
    account = Account(cloud)
    instance = account.provider.acquire(account.request())
    account.exchanges[-1].path
"""

from __future__ import annotations

import getpass
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import Instance, LaunchRequest, Offer
from orchestrator.providers.lambda_cloud.api import LambdaApi
from orchestrator.providers.lambda_cloud.provider import LambdaCloud, open_api
from orchestrator.remote.web.json_api import Answer, WebApi
from tests.support.clock.waiting import until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

RENTAL = "8xa100-1120-abcdef"


@dataclass(frozen=True)
class Exchange:
    """One request as it was sent and what came back."""

    method: str
    path: str
    body: Any
    status: int
    answer: Any


@dataclass(frozen=True)
class Recorded(WebApi):
    """The real client, which also writes down what passes."""

    exchanges: list[Exchange] = field(default_factory=list, repr=False)

    def once(self, method: str, path: str, **options: Any) -> Answer:
        answer = super().once(method, path, **options)
        self.exchanges.append(Exchange(method, path, options.get("body"), answer.status, answer.body))
        return answer


class Account:
    """A provider without pauses, unless told otherwise, on a cloud that runs."""

    def __init__(self, cloud: RehearsalCloud, every_s: Mapping[str, float] | None = None, **host: Any) -> None:
        self.cloud = cloud
        self.exchanges: list[Exchange] = []
        self._fired, self._asked = len(cloud.fired()), len(cloud.requests(""))
        self.host = HostSpec(name="box", provider="lambda", machine="8xA100-40GB", **{"guard": "watcher", **host})
        web = open_api("Lambda Cloud", cloud.entry["url"], cloud.key, every_s or {}).web
        self.web = Recorded(web.name, web.url, web.key, web.pace, self.exchanges)
        self.provider = LambdaCloud(
            "lambda",
            self.host,
            machine_type("8xA100-40GB"),
            lambda: LambdaApi(self.web),
            int(cloud.entry["ssh_port"]),
            getpass.getuser(),
        )

    def offer(self, **fields: Any) -> Offer:
        usual = {"sku": "gpu_8x_a100", "region": "us-west-1"}
        return Offer("lambda", "8xA100-40GB", 15.92, **{**usual, **fields})

    def request(self, rental_id: str = RENTAL, **fields: Any) -> LaunchRequest:
        """A purchase of an intent of its own."""
        now = time.time()
        usual = {"offer": self.offer(), "ends_at": now + 7200, "first_ends_at": now + 5400}
        return LaunchRequest(rental_id, str(uuid.uuid4()), **{**usual, **fields})

    def up(self, **fields: Any) -> Instance:
        """A machine that is active and has an address."""
        bought = self.provider.acquire(self.request(**fields))
        until(lambda: self.seen(bought.instance_id).address is not None)
        return self.seen(bought.instance_id)

    def fired(self) -> list[str]:
        """Faults that fired since this account was made."""
        return self.cloud.fired()[self._fired :]

    def asked(self, path_end: str) -> list[dict[str, Any]]:
        """Requests that reached the cloud since then, by its own log."""
        return [one for one in self.cloud.requests("")[self._asked :] if one["path"].endswith(path_end)]

    def bought(self, request: LaunchRequest) -> int:
        """Machines of this intent, by the cloud's own books."""
        books = self.cloud.ask("GET", "/rehearsal/books")[1]
        return int(books["launches_by_intent"].get(request.intent_id, 0))

    def seen(self, instance_id: str) -> Instance:
        return next(one for one in self.provider.machines() if one.instance_id == instance_id)
