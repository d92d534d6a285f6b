"""Reads what clients send, as strictly as the API's document says. Raises Refusal with the documented code.

Example: `read(cloud, {"region_name": "us-west-1", "instance_type_name": "gpu_8x_a100", "ssh_key_names": ["me"]})`
"""

from __future__ import annotations

import re
from typing import Any

from orchestrator.rehearsal.catalogue import FILE_SYSTEMS, IMAGES, REGIONS, TYPES
from orchestrator.rehearsal.cloud import Cloud, Order
from orchestrator.rehearsal.refusal import Refusal, capacity, elsewhere, invalid, missing, quota

TAG_KEY = re.compile(r"^[a-z][a-z0-9-:]+$")
HOSTNAME = re.compile(r"^[a-z0-9][0-9a-z-]{0,62}$")
LAUNCH_KEYS = frozenset((
    "region_name", "instance_type_name", "ssh_key_names", "file_system_names", "file_system_mounts", "hostname", "name",
    "image", "user_data", "tags", "firewall_rulesets",
))  # fmt: skip
MAX_USER_DATA_BYTES = 1_000_000


def read(cloud: Cloud, body: Any) -> Order:
    """A launch request. Unknown keys are refused: `quantity` has gone from this version."""
    if not isinstance(body, dict) or set(body) - LAUNCH_KEYS:
        raise invalid(
            f"Unknown keys: {sorted(set(body) - LAUNCH_KEYS) if isinstance(body, dict) else 'not an object'}."
        )
    keys = body.get("ssh_key_names")
    if not isinstance(keys, list) or len(keys) != 1:
        raise invalid("Exactly one SSH key name is needed.")
    _exists("instance type", body.get("instance_type_name"), TYPES)
    _exists("region", body.get("region_name"), REGIONS)
    _exists("SSH key", keys[0], [key["name"] for key in cloud.ssh_keys()])
    return Order(
        type=body["instance_type_name"],
        region=body["region_name"],
        ssh_key_name=keys[0],
        name=name(body),
        hostname=_hostname(body.get("hostname")),
        file_systems=_file_systems(body.get("file_system_names", []), body["region_name"]),
        image=_image(body.get("image")),
        user_data=_user_data(body.get("user_data", "")),
        tags=_tags(body.get("tags", [])),
    )


def refused(cloud: Cloud, order: Order) -> Refusal | None:
    """What the fault script refuses a valid launch with; nothing is bought. None: it does not."""
    if cloud.faults.take("no-capacity", order.region):
        cloud.hide(order.region)
        return capacity()
    if cloud.faults.take("listed-but-refused", order.region):
        return capacity()
    most, held = cloud.faults.peek("sells-only"), [one for one in cloud.instances().values() if one.alive]
    if most is not None and sum(not one.foreign for one in held) >= float(most.argument):
        cloud.faults.take("sells-only", on=order.region)
        return capacity()
    return quota() if cloud.faults.take("quota", on=order.region) else None


def name(body: Any) -> str:
    """`name`, 0 to 64 characters."""
    given = body.get("name", "") if isinstance(body, dict) else None
    if not isinstance(given, str) or len(given) > 64:
        raise invalid("name must be a string of at most 64 characters.")
    return given


def instance_ids(body: Any) -> list[str]:
    """`instance_ids` of a terminate request."""
    ids = body.get("instance_ids") if isinstance(body, dict) else None
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
        raise invalid("instance_ids must be a list of instance ids.")
    return ids


def ssh_key(body: Any) -> tuple[str, str]:
    """(name, public key or empty)."""
    given = body if isinstance(body, dict) else {}
    key_name, public_key = given.get("name"), given.get("public_key", "")
    if not isinstance(key_name, str) or not 1 <= len(key_name) <= 64:
        raise invalid("name must have 1 to 64 characters.")
    if not isinstance(public_key, str) or len(public_key) > 4096 or ("public_key" in given and " " not in public_key):
        raise invalid("public_key is not a public key.")
    return key_name, public_key


def _exists(what: str, given: Any, known: Any) -> None:
    if not isinstance(given, str):
        raise invalid(f"The {what} must be a string.")
    if given not in known:
        raise missing(f"The {what} {given!r} does not exist.")


def _hostname(given: Any) -> str:
    if given is not None and not (isinstance(given, str) and HOSTNAME.match(given)):
        raise invalid(f"hostname must match {HOSTNAME.pattern}.")
    return given or ""


def _file_systems(given: Any, region: str) -> tuple[str, ...]:
    """Names of file systems of the account, all in the region."""
    if not isinstance(given, list):
        raise invalid("file_system_names must be a list.")
    for file_system in given:
        _exists("file system", file_system, [one["name"] for one in FILE_SYSTEMS])
    homes = [one["region"]["name"] for one in FILE_SYSTEMS if one["name"] in given]
    if any(home != region for home in homes):
        raise elsewhere()
    return tuple(given)


def _image(given: Any) -> str:
    """The image's id; empty for the default."""
    if given is None:
        return ""
    query = {key: value for key, value in given.items() if key in ("id", "family")} if isinstance(given, dict) else {}
    if not query:
        raise invalid("image needs an id or a family.")
    matching = [image for image in IMAGES if all(image[key] == value for key, value in query.items())]
    if not matching:
        raise missing(f"The image {query} does not exist.")
    return str(matching[0]["id"])


def _user_data(given: Any) -> str:
    if not isinstance(given, str) or len(given.encode()) > MAX_USER_DATA_BYTES:
        raise invalid("user_data must be text of at most 1 MB.")
    return given


def _tags(given: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, list):
        raise invalid("tags must be a list.")
    for tag in given:
        key, value = (tag.get("key"), tag.get("value")) if isinstance(tag, dict) else (None, None)
        if not isinstance(key, str) or not isinstance(value, str):
            raise invalid("A tag needs a key and a value.")
        if len(key) > 55 or not TAG_KEY.match(key) or len(value) > 128:
            raise invalid(f"The tag {key!r} does not fit {TAG_KEY.pattern}, 55 characters, value 128.")
    return tuple((tag["key"], tag["value"]) for tag in given)
