"""An instance as the API shows it. `jupyter_token` is in every answer: a working login that clients must keep secret.

Example: `instance(one)["status"] == "booting"`, without `ip`
"""

from __future__ import annotations

import time

from orchestrator.rehearsal.books.books import Instance
from orchestrator.rehearsal.catalogue import REGIONS, TYPES, Json

ACTIONS = ("migrate", "rebuild", "restart", "cold_reboot", "terminate")


def instance(one: Instance) -> Json:
    """The API's Instance."""
    shown: Json = {
        "id": one.id,
        "name": one.name,
        "status": one.status,
        "ssh_key_names": [one.ssh_key_name],
        "file_system_names": list(one.file_systems),
        "region": REGIONS[one.region],
        "instance_type": {**TYPES[one.type], "price_cents_per_hour": one.price_cents_per_hour},
        "hostname": one.hostname or f"rehearsal-{one.id[:8]}",
        "actions": {action: _action(one, action) for action in ACTIONS},
        "tags": [{"key": key, "value": value} for key, value in one.tags],
    }
    if one.ip_at is not None and one.ip_at <= time.time() and one.alive:
        shown["ip"] = one.ip
        shown["private_ip"] = one.ip
        shown["jupyter_token"] = one.jupyter_token
        shown["jupyter_url"] = f"https://jupyter.example.invalid/?token={one.jupyter_token}"
    return shown


def _action(one: Instance, action: str) -> Json:
    """Whether the action is possible now, and if not, why."""
    if action in ("migrate", "rebuild"):
        return {"available": False, "reason_code": "vm-is-too-old", "reason_description": "Not offered here."}
    if not one.alive:
        return {"available": False, "reason_code": "vm-is-terminating", "reason_description": "It is terminating."}
    if one.status == "booting" and action != "terminate":
        return {"available": False, "reason_code": "vm-has-not-launched", "reason_description": "It is booting."}
    return {"available": True}
