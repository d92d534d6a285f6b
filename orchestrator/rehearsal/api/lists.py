"""What reads show of the account: the truth, or the lies about lists. The books do not know these lies.

`list-empty`, `list-paged` and `list-odd-row` lie in lists only; the others in every answer that shows an instance.

Example: `body(cloud, page_token="")["data"]`
"""

from __future__ import annotations

import time
from dataclasses import replace

from orchestrator.rehearsal.api import answers
from orchestrator.rehearsal.books.books import Instance
from orchestrator.rehearsal.catalogue import Json
from orchestrator.rehearsal.cloud import Cloud
from orchestrator.rehearsal.refusal import invalid

PAGE_SIZE = 1
STRANGER = "5712a7e2-0000-4000-8000-000000000000"
REGION: Json = {"name": "moon-1", "description": "Sea of Tranquility"}
ODD_ROWS: dict[str, Json] = {
    "stranger": {"id": STRANGER, "status": "active"},
    "id": {"id": 17, "status": "active", "tags": []},
    "type": {"id": STRANGER, "status": "active", "region": REGION, "instance_type": {"name": "gpu_16x_b900"}},
    "region": {"id": STRANGER, "status": "active", "region": None, "instance_type": None, "actions": None},
}
"""Rows of a stranger that fit no document, by the argument of `list-odd-row`."""
ONLY_ID: Json = {"status": 17, "name": None, "tags": "none", "region": None, "instance_type": None, "actions": None}
"""What `list-odd-row@ours` leaves of our rows besides the id."""


def instances(cloud: Cloud) -> dict[str, Instance]:
    """The instances as reads show them: as they were earlier, while list-lag is armed."""
    lag = cloud.faults.take("list-lag")
    return cloud.instances(float(lag.argument) if lag else 0.0)


def body(cloud: Cloud, page_token: str) -> Json:
    """The whole answer of a list. Raises Refusal for an unknown page token."""
    if cloud.faults.during("list-empty"):
        return {"data": []}
    rows = _with_odd_row(cloud, [(one, row(cloud, one)) for one in instances(cloud).values()])
    return _page(rows, page_token) if cloud.faults.during("list-paged") else {"data": rows}


def row(cloud: Cloud, one: Instance) -> Json:
    """One instance: without tags, or without tags and name, while the cloud lies about them."""
    if one.relapses_at is not None and one.relapses_at > time.time():
        one = replace(one, status="terminated", ip_at=None)
    shown = answers.instance(one)
    if cloud.faults.during("list-nameless"):
        return {**shown, "tags": [], "name": ""}
    return {**shown, "tags": []} if cloud.faults.during("list-untagged") else shown


def _with_odd_row(cloud: Cloud, rows: list[tuple[Instance, Json]]) -> list[Json]:
    odd = cloud.faults.take("list-odd-row")
    if odd is not None and odd.argument == "ours":
        return [shown if one.foreign else {"id": one.id, **ONLY_ID} for one, shown in rows]
    return [*([ODD_ROWS[odd.argument]] if odd else []), *(shown for _, shown in rows)]


def _page(rows: list[Json], token: str) -> Json:
    """The API's document has no pages for lists of instances; its audit log has."""
    if token and not token.isdigit():
        raise invalid("Unknown page_token.")
    first = int(token or 0)
    more = first + PAGE_SIZE < len(rows)
    return {"data": rows[first : first + PAGE_SIZE], "page_token": str(first + PAGE_SIZE) if more else None}
