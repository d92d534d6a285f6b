"""What Lambda's answers hold, as frozen values: one shape per kind of row, and only the fields that gptctl reads.

Rows are judged one by one: a row that does not fit is left out and named in one line. An instance is kept as long as
its id can be read, since the id is all it takes to end it. Fields that are not named here are dropped unread: every
instance comes with a `jupyter_token`, which is a working login.

Example: `read_rows(SshKey, [{"name": "me", "public_key": "ssh-ed25519 AAAA"}])` -> Rows((SshKey(...),), ())
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Generic, TypedDict, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from orchestrator.core.errors import NoAnswer

T = TypeVar("T")
P = TypeVar("P", bound="Part")
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
"""Becomes part of a path and of known_hosts."""
Ip = Annotated[str, AfterValidator(lambda text: str(ipaddress.ip_address(text)))]
"""Is given to ssh."""


def _ipv4(value: object) -> str:
    """A private address that is odd hides no machine."""
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        return ""


PrivateIp = Annotated[str, BeforeValidator(_ipv4)]
STATUSES = frozenset({"booting", "active", "unhealthy", "terminated", "terminating", "preempted"})
UNKNOWN = "unknown"
"""The status of an instance whose own is missing or in no document."""


class Part(BaseModel):
    """A part of an answer. Strict; the error for a wrong value does not show it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)


class Named(Part):
    """A region."""

    name: str


class Specs(Part):
    """Of an instance type."""

    gpus: int
    storage_gib: int | None = None


class InstanceType(Part):
    """What is sold; the price is for the whole machine."""

    name: str
    gpu_description: str
    price_cents_per_hour: int
    specs: Specs


class Sold(Part):
    """An instance type and the regions that list capacity, which is advice: a launch there may still be refused."""

    instance_type: InstanceType
    regions_with_capacity_available: list[Named]


class Tag(Part):
    """Given at launch, unchangeable."""

    key: str
    value: str


def _readable_tags(value: object) -> list[Tag]:
    """The tags that can be read; one odd tag does not hide the others."""
    rows = value if isinstance(value, list) else []
    pairs = [(row.get("key"), row.get("value")) for row in rows if isinstance(row, Mapping)]
    return [Tag(key=key, value=text) for key, text in pairs if isinstance(key, str) and isinstance(text, str)]


class Machine(Part):
    """An instance. `active` does not mean that there is an `ip` already."""

    id: Id
    status: str = UNKNOWN
    name: str = ""
    ip: Ip | None = None
    private_ip: PrivateIp = ""
    tags: Annotated[list[Tag], BeforeValidator(_readable_tags)] = Field(default_factory=list)
    region: Named | None = None
    instance_type: InstanceType | None = None

    @property
    def by_key(self) -> dict[str, str]:
        """Its tags."""
        return {tag.key: tag.value for tag in self.tags}


class _Order(TypedDict):
    region_name: str
    instance_type_name: str
    ssh_key_names: list[str]
    name: str
    tags: list[dict[str, str]]


class Order(_Order, total=False):
    """The body of a launch."""

    user_data: str
    file_system_names: list[str]
    image: dict[str, str]


class SshKey(Part):
    """A registered login key."""

    name: str
    public_key: str


class Image(Part):
    """A machine image, per region."""

    id: Id
    family: str
    region: Named


class FileSystem(Part):
    """Storage that outlives the machines it is attached to."""

    name: str
    region: Named


class AuditEvent(Part):
    """One action on some resources."""

    action: str
    event_time: str
    resource_lrns: list[str]

    @property
    def at(self) -> float:
        """UTC epoch seconds. Raises ValueError."""
        moment = datetime.fromisoformat(self.event_time)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True)
class Rows(Generic[T]):
    """The rows of a list that can be read, and one line for each that cannot, or not whole."""

    rows: tuple[T, ...] = ()
    odd: tuple[str, ...] = ()

    def __add__(self, more: Rows[T]) -> Rows[T]:
        return Rows(self.rows + more.rows, self.odd + more.odd)


def read_value(shape: type[T], value: object) -> T:
    """The value as that type. Raises NoAnswer that names what is wrong, not what it was."""
    try:
        return TypeAdapter(shape).validate_python(value)
    except ValidationError as error:
        raise NoAnswer(f"the answer does not fit the API's document: {_why(error)}", "try again") from None


def read_rows(shape: type[P], value: object) -> Rows[P]:
    """A list's rows, each judged alone. Raises NoAnswer for what is not a list, or a list without one readable row."""
    good, odd = list[P](), list[str]()
    for number, row in enumerate(_listed(value), start=1):
        try:
            good.append(shape.model_validate(row))
        except ValidationError as error:
            odd.append(f"{shape.__name__} in row {number} of the list: {_why(error)}")
    if odd and not good:
        raise NoAnswer(f"the answer does not fit the API's document: {odd[0]}", "try again")
    return Rows(tuple(good), tuple(odd))


def read_machines(value: object, is_ours: Callable[[Machine], bool]) -> Rows[Machine]:
    """Our instances in a list: with an id, whatever else they lack. Raises NoAnswer for what is not a list of
    instances: no row has an id, a name or a tag."""
    listed, rows, odd = _listed(value), list[Machine](), list[str]()
    if listed and not any(_says_something(row) for row in listed):
        raise NoAnswer("the answer does not fit the API's document: no row is an instance", "try again")
    for number, row in enumerate(listed, start=1):
        try:
            machine, line = read_machine(row)
        except ValidationError as error:
            odd.append(f"instance in row {number} of the list: {_why(error)}")
            continue
        if is_ours(machine):
            rows.append(machine)
            odd += [line] if line else []
    return Rows(tuple(rows), tuple(odd))


def _says_something(row: object) -> bool:
    if not isinstance(row, Mapping):
        return False
    return any(isinstance(row.get(name), str) for name in ("id", "name")) or bool(_readable_tags(row.get("tags")))


def read_machine(row: object) -> tuple[Machine, str]:
    """An instance without the fields that do not fit, and which these are. Raises ValidationError without an id."""
    try:
        machine, odd = Machine.model_validate(row), ""
    except ValidationError as error:
        wrong = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
        kept = {name: value for name, value in row.items() if name not in wrong} if isinstance(row, Mapping) else row
        machine, odd = Machine.model_validate(kept), _why(error)
    missing = [name for name in ("status", "region", "instance_type") if name not in machine.model_fields_set]
    if machine.status not in STATUSES:
        machine, odd = machine.model_copy(update={"status": UNKNOWN}), odd or "a status that is in no document"
    return machine, (f"instance {machine.id}: {odd or 'no ' + ', no '.join(missing)}" if odd or missing else "")


def _listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise NoAnswer("the answer does not fit the API's document: not a list", "try again")
    return value


def _why(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "data"
    return f"{where}: {first['msg']}"
