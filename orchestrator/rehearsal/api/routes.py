"""The part of the Lambda Cloud API 1.10.0 that gptctl uses: paths, answers, documented errors. Opens no socket.

Example: `route("GET", "/api/v1/instances")` -> ("list", the act that makes the answer's `data`, "")
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.rehearsal.api import lists, orders
from orchestrator.rehearsal.books import audit
from orchestrator.rehearsal.books.books import Instance
from orchestrator.rehearsal.catalogue import FILE_SYSTEMS, IMAGES, REGIONS, TYPES, Json
from orchestrator.rehearsal.cloud import Cloud
from orchestrator.rehearsal.refusal import NO_SUCH_INSTANCE, Refusal, capacity, internal, invalid, quota, unauthorized


@dataclass(frozen=True)
class Request:
    """One call, after the key was accepted."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    argument: str = ""
    """The id at the end of the path."""


ODD_TYPE: Json = {"instance_type": {"name": "gpu_16x_b900"}}
Act = Callable[[Cloud, Request], Any]


def route(method: str, path: str) -> tuple[str, Act, str]:
    """(operation, act, id in the path). Raises Refusal for an unknown path or method."""
    for known_method, pattern, operation, act in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and method == known_method:
            return operation, act, "".join(match.groups())
    raise Refusal(404, "global/not-found", "The requested resource was not found.")


def _types(cloud: Cloud, request: Request) -> Json:
    sold_out = cloud.faults.take("sold-out", *REGIONS)
    regions = [REGIONS[name] for name in cloud.listed_regions() if not sold_out or sold_out.argument not in ("", name)]
    on_sale: Json = {
        name: {
            "instance_type": {**row, "price_cents_per_hour": cloud.price_cents(name)},
            "regions_with_capacity_available": regions,
        }
        for name, row in TYPES.items()
    }
    if cloud.faults.take("odd-type"):
        on_sale = {"gpu_16x_b900": ODD_TYPE, **on_sale}
    change = cloud.faults.take("price-change")
    if change:
        cloud.change_prices(float(change.argument))
    return on_sale


def _launch(cloud: Cloud, request: Request) -> Json:
    order = orders.read(cloud, request.body)
    refusal = orders.refused(cloud, order)
    if refusal:
        raise refusal
    empty = cloud.faults.take("empty-ids")
    if empty and empty.argument == "nothing":
        return {"instance_ids": []}
    bought = [cloud.launch(order) for _ in range(2 if cloud.faults.take("double-launch") else 1)]
    if lie := cloud.faults.take("refused-but-bought", on=bought[0]):
        raise quota() if lie.argument == "quota" else capacity()
    return {"instance_ids": [] if empty else bought[:1]}


def _list(cloud: Cloud, request: Request) -> Json:
    return lists.body(cloud, request.query.get("page_token", ""))


def _get(cloud: Cloud, request: Request) -> Json:
    if cloud.faults.during("get-missing"):
        raise NO_SUCH_INSTANCE
    return lists.row(cloud, _one(lists.instances(cloud), request.argument))


def _one(instances: dict[str, Instance], instance_id: str) -> Instance:
    if instance_id not in instances:
        raise NO_SUCH_INSTANCE
    return instances[instance_id]


def _rename(cloud: Cloud, request: Request) -> Json:
    instance = _one(cloud.instances(), request.argument)
    name = orders.name(request.body)
    if not cloud.faults.take("rename-ignored", on=instance.id):
        cloud.rename(instance, name)
    return {**lists.row(cloud, instance), "name": name}


def _terminate(cloud: Cloud, request: Request) -> Json:
    ids = orders.instance_ids(request.body)
    found = [_one(cloud.instances(), instance_id) for instance_id in ids]
    if cloud.faults.take("terminate-500", on=" ".join(ids)):
        raise internal()
    if cloud.faults.take("terminate-401", on=" ".join(ids)):
        raise unauthorized()
    ignored = cloud.faults.take("terminate-ignored", on=" ".join(ids))
    if ignored:
        return {"terminated_instances": [] if ignored.argument else [lists.row(cloud, one) for one in found]}
    for instance in found:
        if relapse := cloud.faults.take("terminate-relapse", on=instance.id):
            cloud.relapse(instance, float(relapse.argument))
        else:
            cloud.terminate(instance)
    now = cloud.instances()
    return {"terminated_instances": [lists.row(cloud, now.get(one.id, one)) for one in found]}


def _keys(cloud: Cloud, request: Request) -> list[Json]:
    return [dict(key) for key in cloud.ssh_keys()]


def _add_key(cloud: Cloud, request: Request) -> Json:
    name, public_key = orders.ssh_key(request.body)
    if any(key["name"] == name for key in cloud.ssh_keys()):
        raise invalid(f"An SSH key named {name!r} exists already.")
    if public_key:
        return dict(cloud.add_ssh_key(name, public_key))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True, timeout=20)
        made = cloud.add_ssh_key(name, file.with_suffix(".pub").read_text().strip())
        return {**made, "private_key": file.read_text()}


def _delete_key(cloud: Cloud, request: Request) -> Json:
    if not cloud.delete_ssh_key(request.argument):
        raise invalid("Specified SSH key does not exist.")
    return {}


def _audit(cloud: Cloud, request: Request) -> Json:
    return audit.page(cloud.events(), request.query)


V1 = "/api/v1"
ID = r"([A-Za-z0-9-]+)"
ROUTES: tuple[tuple[str, str, str, Act], ...] = (
    ("GET", f"{V1}/instance-types", "types", _types),
    ("POST", f"{V1}/instance-operations/launch", "launch", _launch),
    ("POST", f"{V1}/instance-operations/terminate", "terminate", _terminate),
    ("GET", f"{V1}/instances", "list", _list),
    ("GET", f"{V1}/instances/{ID}", "get", _get),
    ("POST", f"{V1}/instances/{ID}", "rename", _rename),
    ("GET", f"{V1}/ssh-keys", "keys", _keys),
    ("POST", f"{V1}/ssh-keys", "keys", _add_key),
    ("DELETE", f"{V1}/ssh-keys/{ID}", "keys", _delete_key),
    ("GET", f"{V1}/images", "images", lambda cloud, request: IMAGES),
    ("GET", f"{V1}/regions", "images", lambda cloud, request: list(REGIONS.values())),
    ("GET", f"{V1}/file-systems", "file-systems", lambda cloud, request: FILE_SYSTEMS),
    ("GET", f"{V1}/audit-events", "audit", _audit),
)
