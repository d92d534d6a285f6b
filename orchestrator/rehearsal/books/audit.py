"""Audit events from the books: which instance was launched, changed and ended, and when.

The action words of Lambda's own catalogue are not in its API document; `launched`, `terminated` and `preempted` are
this cloud's, and so is `additional_details`. A client must rely on resource, time and instance id only.

Example: `page(events, {"start": "2026-11-20T10:00:00Z"})["data"][0]["action"]`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from orchestrator.rehearsal.books.books import Event
from orchestrator.rehearsal.catalogue import Json
from orchestrator.rehearsal.refusal import invalid

PAGE_SIZE = 50
DECIMALS = 6
"""Of a second, in `event_time`: a client can ask for the events from an event's own time on."""
ACTIONS = {"launched": "launched", "active": "activated", "ended": "terminated", "renamed": "renamed"}


def page(events: Iterable[Event], query: Mapping[str, str]) -> Json:
    """One page, oldest first: {"data": [AuditEvent], "page_token": text or None}. Raises Refusal."""
    start, end = _time(query.get("start"), 0.0), _time(query.get("end"), 1e18)
    asks_for_instances = query.get("resource_type", "instance") == "instance"
    shown = [one for one in events if asks_for_instances and one["event"] in ACTIONS]
    matching = [one for one in shown if start <= round(one["time"], DECIMALS) <= end]
    token = query.get("page_token", "0")
    if not token.isdigit():
        raise invalid("Unknown page_token.")
    first = int(token)
    more = first + PAGE_SIZE < len(matching)
    return {
        "data": [_event(one) for one in matching[first : first + PAGE_SIZE]],
        "page_token": str(first + PAGE_SIZE) if more else None,
    }


def _event(event: Event) -> Json:
    instance_id = event["instance"]["id"] if event["event"] == "launched" else event["id"]
    action = "preempted" if event.get("status") == "preempted" else ACTIONS[event["event"]]
    lrn = f"lrn:cloud:instance:{instance_id}"
    return {
        "service_name": "cloud",
        "resource_name": "instance",
        "action": action,
        "catalog_version": "2025-09-06",
        "event_id": hashlib.sha256(f"{event['time']} {action} {instance_id}".encode()).hexdigest()[:32],
        "event_time": datetime.fromtimestamp(round(event["time"], DECIMALS), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "actor_lrn": "lrn:cloud:identity:00000000000000000000000000000001",
        "resource_lrns": [lrn],
        "resource_owner_lrn": "lrn:cloud:account:00000000000000000000000000000002",
        "request_api_key_lrn": "lrn:cloud:api_key:00000000000000000000000000000003",
        "additional_details": {"instance_lrn": lrn},
    }


def _time(text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        raise invalid(f"{text!r} is not an ISO 8601 time.") from None
