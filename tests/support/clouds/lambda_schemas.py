"""What may pass between us and the Lambda Cloud API 1.10.0, as JSON schemas written by hand from its document.

With the document itself at hand, GPTCTL_LAMBDA_OPENAPI=FILE makes `validator` use that instead. The document forbids no
unknown key in a request; these do, so that a field that has gone (`quantity`) cannot come back unnoticed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

DOCUMENT = os.environ.get("GPTCTL_LAMBDA_OPENAPI")
Schema = dict[str, Any]


def _object(required: Schema, optional: Schema | None = None, *, closed: bool = False) -> Schema:
    properties = {**required, **(optional or {})}
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        **({"additionalProperties": False} if closed else {}),
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer"}
NAME: Schema = {"type": "string", "maxLength": 64}
KEY_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
PUBLIC_KEY: Schema = {"type": "string", "minLength": 1, "maxLength": 4096}
TAG = _object({"key": {"type": "string", "maxLength": 55, "pattern": "^[a-z][a-z0-9-:]+$"},
               "value": {"type": "string", "maxLength": 128}}, closed=True)  # fmt: skip
REGION = _object({"name": TEXT, "description": TEXT})
SPECS = _object({"vcpus": COUNT, "memory_gib": COUNT, "storage_gib": COUNT, "gpus": COUNT})
TYPE = _object({"name": TEXT, "description": TEXT, "gpu_description": TEXT, "price_cents_per_hour": COUNT,
                "specs": SPECS})  # fmt: skip
ACTION = _object({"available": {"type": "boolean"}}, {"reason_code": TEXT, "reason_description": TEXT})
STATUS: Schema = {"enum": ["booting", "active", "unhealthy", "terminated", "terminating", "preempted"]}
INSTANCE = _object(
    {"id": TEXT, "status": STATUS, "ssh_key_names": _list(TEXT), "file_system_names": _list(TEXT), "region": REGION,
     "instance_type": TYPE,
     "actions": _object(dict.fromkeys(("migrate", "rebuild", "restart", "cold_reboot", "terminate"), ACTION))},
    {"name": NAME, "ip": TEXT, "private_ip": TEXT, "hostname": TEXT, "jupyter_token": TEXT, "jupyter_url": TEXT,
     "tags": _list(_object({"key": TEXT, "value": TEXT}))},
)  # fmt: skip
SSH_KEY = _object({"id": TEXT, "name": KEY_NAME, "public_key": PUBLIC_KEY})
EVENT = _object(
    {**dict.fromkeys(("service_name", "resource_name", "action", "catalog_version", "event_id", "event_time"), TEXT),
     **{key: {"type": ["string", "null"]} for key in ("actor_lrn", "resource_owner_lrn", "request_api_key_lrn")},
     "resource_lrns": _list(TEXT), "additional_details": {"type": "object"}}
)  # fmt: skip
IMAGE = _object({**dict.fromkeys(("id", "created_time", "updated_time", "name", "description", "family", "version",
                                  "architecture"), TEXT), "region": REGION})  # fmt: skip
ERROR = _object({"error": _object({"code": TEXT, "message": TEXT}, {"suggestion": TEXT})}, closed=True)
LAUNCH = _object(
    {"region_name": TEXT, "instance_type_name": TEXT,
     "ssh_key_names": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 1}},
    {"name": NAME, "tags": _list(TAG), "user_data": {"type": "string", "maxLength": 1_000_000},
     "image": {"oneOf": [_object({"id": TEXT}, closed=True), _object({"family": TEXT}, closed=True)]}},
    closed=True,
)  # fmt: skip

REQUESTS: dict[tuple[str, str], Schema] = {
    ("post", "/instance-operations/launch"): LAUNCH,
    ("post", "/instance-operations/terminate"): _object({"instance_ids": _list(TEXT)}, closed=True),
    ("post", "/instances/{id}"): _object({}, {"name": NAME}, closed=True),
    ("post", "/ssh-keys"): _object({"name": KEY_NAME}, {"public_key": PUBLIC_KEY}, closed=True),
}
ANSWERS: dict[tuple[str, str], Schema] = {
    ("get", "/instance-types"): {"type": "object", "additionalProperties": _object(
        {"instance_type": TYPE, "regions_with_capacity_available": _list(REGION)})},
    ("get", "/instances"): _list(INSTANCE),
    ("get", "/instances/{id}"): INSTANCE,
    ("post", "/instances/{id}"): INSTANCE,
    ("post", "/instance-operations/launch"): _object({"instance_ids": _list(TEXT)}),
    ("post", "/instance-operations/terminate"): _object({"terminated_instances": _list(INSTANCE)}),
    ("get", "/ssh-keys"): _list(SSH_KEY),
    ("post", "/ssh-keys"): SSH_KEY,
    ("get", "/images"): _list(IMAGE),
    ("get", "/audit-events"): _list(EVENT),
}  # fmt: skip


def operation(method: str, path: str) -> tuple[str, str]:
    """("post", "/instances/{id}") of a request as it was sent."""
    parts = path.split("/")
    return method.lower(), "/instances/{id}" if parts[1] == "instances" and len(parts) == 3 else path


def request_validator(method: str, path: str) -> Draft202012Validator:
    """Judges a request's body. KeyError: the API has no such call, or it takes no body."""
    return _validator(REQUESTS[operation(method, path)], *operation(method, path), "requestBody")


def answer_validator(method: str, path: str, status: int) -> Draft202012Validator:
    """Judges an answer's whole body."""
    data = ANSWERS[operation(method, path)]
    whole = _object({"data": data}, {"page_token": {"type": ["string", "null"]}}, closed=True)
    return _validator(whole if status == 200 else ERROR, *operation(method, path), "responses", str(status))


def _validator(by_hand: Schema, method: str, path: str, *place: str) -> Draft202012Validator:
    if DOCUMENT is None:
        return Draft202012Validator(by_hand)
    registry = Registry().with_resource("urn:lambda", _document())
    keys = ["paths", f"/api/v1{path}", method, *place, "content", "application/json", "schema"]
    pointer = "/".join(key.replace("~", "~0").replace("/", "~1") for key in keys)
    return Draft202012Validator({"$ref": f"urn:lambda#/{pointer}"}, registry=registry)


def _document() -> Resource[Any]:
    return Resource.opaque(json.loads(Path(str(DOCUMENT)).read_text(encoding="utf-8")))
