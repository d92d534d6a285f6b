"""What AWS's answers hold, as frozen values: instances, offerings, groups, images. The one place where rows are read.

Rows are judged one by one: one that does not fit is left out and named in one line. An instance is kept as long as it
has an id, since the id is all it takes to end it.

Example: `judged("offering", rows, read_offering).rows` -> (Offering("p4d.24xlarge", "us-east-1a"), ...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from orchestrator.core.errors import NoAnswer
from orchestrator.core.typed_json import parse

T = TypeVar("T")
ODD = (KeyError, TypeError, ValueError, AttributeError, IndexError)
ROOT_GIB = 8


@dataclass(frozen=True)
class Rows(Generic[T]):
    """The rows of a list that can be read, and one line for each that cannot."""

    rows: tuple[T, ...]
    odd: tuple[str, ...] = ()


@dataclass(frozen=True)
class InstanceRow:
    """An instance as describe_instances and run_instances have it. Empty: the row does not say. Times: UTC epoch."""

    id: str
    type: str = ""
    state: str = ""
    reason_code: str = ""
    reason: str = ""
    transition: str = ""
    """StateTransitionReason: it may name the moment of its end."""
    ip: str = ""
    private_ip: str = ""
    launched_at: float | None = None
    zone: str = ""
    image: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    odd: str = ""
    """What the row lacks, in words; empty where it is whole."""


@dataclass(frozen=True)
class Offering:
    """An instance type that a zone has."""

    sku: str
    zone: str


@dataclass(frozen=True)
class Price:
    """USD per hour of an instance type in a region, or on the spot market in a zone."""

    sku: str
    place: str
    usd: float


@dataclass(frozen=True)
class Image:
    """A machine image: its id, its root device and that one's size."""

    id: str
    root: str
    size_gib: int
    created: str = ""


@dataclass(frozen=True)
class Opening:
    """A rule that lets one address in; its description says whose it is."""

    port: int
    cidr: str
    description: str


@dataclass(frozen=True)
class Group:
    """A security group of ours, and whom it lets in."""

    id: str
    name: str
    openings: frozenset[Opening] = frozenset()


def judged(what: str, rows: Iterable[Any], read: Callable[[Any], T]) -> Rows[T]:
    """Every row that `read` can make sense of. Raises NoAnswer for a list of which it can read none."""
    good, odd = list[T](), list[str]()
    for number, row in enumerate(rows, start=1):
        try:
            good.append(read(row))
        except ODD as error:
            odd.append(f"{what} in row {number} of the list: {type(error).__name__} {error}")
    if odd and not good:
        raise NoAnswer(f"the answer of AWS does not fit its document: {odd[0]}", "try again later")
    return Rows(tuple(good), tuple(odd))


def read_instance(row: Any) -> InstanceRow:
    """The instance with whatever can be read of it. Raises KeyError or TypeError for a row without an id."""
    instance_id = str(row["InstanceId"])
    state, reason, placed = _inner(row, "State"), _inner(row, "StateReason"), _inner(row, "Placement")
    launched = getattr(row.get("LaunchTime"), "timestamp", None)
    missing = [name for name in ("State", "InstanceType", "LaunchTime") if not row.get(name)]
    return InstanceRow(
        id=instance_id,
        type=_text(row, "InstanceType"),
        state=_text(state, "Name"),
        reason_code=_text(reason, "Code"),
        reason=_text(reason, "Message"),
        transition=_text(row, "StateTransitionReason"),
        ip=_text(row, "PublicIpAddress"),
        private_ip=_text(row, "PrivateIpAddress"),
        launched_at=launched() if launched else None,
        zone=_text(placed, "AvailabilityZone"),
        image=_text(row, "ImageId"),
        tags=_tags(row.get("Tags")),
        odd=f"instance {instance_id}: no {', no '.join(missing)}" if missing else "",
    )


def read_offering(row: Any) -> Offering:
    """Raises KeyError, TypeError."""
    return Offering(str(row["InstanceType"]), str(row["Location"]))


def read_spot_price(row: Any) -> Price:
    """Raises KeyError, TypeError, ValueError."""
    return Price(str(row["InstanceType"]), str(row["AvailabilityZone"]), float(row["SpotPrice"]))


def read_listed_prices(text: str) -> list[Price]:
    """The on-demand prices in one row of the price list; none for a capacity block. Raises KeyError, ValueError."""
    row = parse(text)
    sold = row["product"]["attributes"]
    if sold.get("marketoption", "OnDemand") != "OnDemand":
        return []
    terms = row["terms"].get("OnDemand", {}).values()
    usd = [float(each["pricePerUnit"]["USD"]) for term in terms for each in term["priceDimensions"].values()]
    return [Price(sold["instanceType"], sold["regionCode"], price) for price in usd]


def read_image(row: Any) -> Image:
    """Raises KeyError."""
    root = str(row.get("RootDeviceName") or "/dev/sda1")
    disks = {each["DeviceName"]: each.get("Ebs", {}) for each in row.get("BlockDeviceMappings", [])}
    size_gib = int(disks.get(root, {}).get("VolumeSize") or ROOT_GIB)
    return Image(str(row["ImageId"]), root, size_gib, _text(row, "CreationDate"))


def read_group(row: Any) -> Group:
    """Raises KeyError."""
    openings = [
        Opening(rule["FromPort"], each["CidrIp"], str(each.get("Description")))
        for rule in row.get("IpPermissions", [])
        for each in rule.get("IpRanges", [])
    ]
    return Group(str(row["GroupId"]), str(row["GroupName"]), frozenset(openings))


def _inner(row: Any, name: str) -> Any:
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def _text(row: Any, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)


def _tags(value: Any) -> dict[str, str]:
    """The tags that can be read; one odd tag does not hide the others."""
    pairs = [(tag.get("Key"), tag.get("Value")) for tag in value or [] if isinstance(tag, dict)]
    return {key: text for key, text in pairs if isinstance(key, str) and isinstance(text, str)}
