"""The Lambda Cloud API 1.10.0, as much of it as gptctl uses: calls, the parts of answers that are read, error codes.

What an answer means for a rental is the provider's affair. Reads and repeatable writes are repeated within a deadline;
a launch is one request, and only the documented refusals count as "nothing was bought". Fields that are not named here
are dropped unread: every instance comes with a `jupyter_token`, which is a working login.

Example: `[row.id for row in LambdaApi(web).tagged("gptctl-rental")]`
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from orchestrator.core.errors import AmbiguousLaunch, BadCredentials, NoAnswer, NoCapacity, ProviderError
from orchestrator.core.ports import EndCall
from orchestrator.remote.web.json_api import Answer, WebApi

ENDPOINT = "https://cloud.lambda.ai"
PATH = "/api/v1"
EVERY_S: Final = {"request": 1.0, "launch": 12.0}
"""What Lambda allows, over everything that uses the account."""
LAUNCH_DEADLINE_S = 60.0
READ_DEADLINE_S = 30.0
MOST_AUDIT_PAGES = 20
KEY_HINT = "set LAMBDA_API_KEY to a key from https://cloud.lambda.ai/api-keys"

NO_CAPACITY = "instance-operations/launch/insufficient-capacity"
BAD_KEY = "global/invalid-api-key"
MISSING = "global/object-does-not-exist"
REFUSALS: Final = {
    NO_CAPACITY: "another region or machine type may have one; --wait keeps asking",
    BAD_KEY: KEY_HINT,
    MISSING: "check regions, image and machine type of the host entry: gptctl offers",
    "instance-operations/launch/file-system-in-wrong-region": "choose the file system's region",
    "global/invalid-parameters": "check the host entry",
    "global/quota-exceeded": "ask Lambda's support for a larger quota",
    "global/account-inactive": "look at https://cloud.lambda.ai: address verified, payment method valid?",
    "global/invalid-address": "correct the billing address at https://cloud.lambda.ai",
    "global/forbidden": "the key may not do this: look at https://cloud.lambda.ai/api-keys",
}
"""The documented ways to refuse, each with what to do. For a launch: nothing was bought."""

T = TypeVar("T")
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$")]
"""Becomes part of a path and of known_hosts."""
Ip = Annotated[str, AfterValidator(lambda text: str(ipaddress.ip_address(text)))]
"""Is given to ssh."""


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
    """An instance type and where there is capacity, which is advice: launches are refused all the same."""

    instance_type: InstanceType
    regions_with_capacity_available: list[Named]


class Tag(Part):
    """Given at launch, unchangeable."""

    key: str
    value: str


class Action(Part):
    """Whether something can be done to an instance now."""

    available: bool
    reason_code: str = ""


class Actions(Part):
    """Of the five, the one that counts."""

    terminate: Action


class Row(Part):
    """Any instance of the account: enough to know whether it is ours."""

    id: Id
    tags: list[Tag] = Field(default_factory=list)

    @property
    def by_key(self) -> dict[str, str]:
        """Its tags."""
        return {tag.key: tag.value for tag in self.tags}


class Machine(Row):
    """An instance. `active` does not mean that there is an `ip` already."""

    status: str
    name: str = ""
    ip: Ip | None = None
    region: Named
    instance_type: InstanceType
    actions: Actions


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
    """Somebody did something to some resources."""

    action: str
    event_time: str
    resource_lrns: list[str]

    @property
    def at(self) -> float:
        """UTC epoch seconds. Raises ValueError."""
        moment = datetime.fromisoformat(self.event_time)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class Missing(ProviderError):
    """What was asked for is not there, says an answer that may lag behind."""


@dataclass(frozen=True)
class LambdaApi:
    """One account. Raises BadCredentials, NoAnswer, or ProviderError for a refusal; messages name `web.name`."""

    web: WebApi

    def types(self, deadline_s: float = 30.0) -> list[Sold]:
        """Everything on sale."""
        return list(self._get("/instance-types", dict[str, Sold], deadline_s).values())

    def tagged(self, tag: str) -> list[Machine]:
        """The instances that carry the tag. Nothing but id and tags is read of the others."""

        def read(answer: Answer) -> list[Machine]:
            rows = _read(list[dict[str, Any]], self._data(answer))
            return [_read(Machine, row) for row in rows if tag in _read(Row, row).by_key]

        return self.web.until("GET", "/instances", read, deadline_s=READ_DEADLINE_S)

    def lists(self, instance_id: str) -> bool:
        """Whether the list of all instances has it."""
        return instance_id in [row.id for row in self._get("/instances", list[Row])]

    def instance(self, instance_id: str) -> Machine:
        """Raises Missing."""
        return self._get(f"/instances/{instance_id}", Machine)

    def ssh_keys(self) -> list[SshKey]:
        """The account's login keys."""
        return self._get("/ssh-keys", list[SshKey])

    def add_ssh_key(self, name: str, public_key: str) -> None:
        """One request: a name can be registered once only, and ssh_keys() shows whether it was."""
        answer = self.web.once("POST", "/ssh-keys", body={"name": name, "public_key": public_key})
        self._data(answer)

    def images(self) -> list[Image]:
        """All regions' images."""
        return self._get("/images", list[Image])

    def file_systems(self) -> list[FileSystem]:
        """The account's persistent file systems, whoever made them."""
        return self._get("/file-systems", list[FileSystem])

    def launch(self, order: Mapping[str, Any], intent_id: str) -> str:
        """ONE request; the instance's id. NoCapacity, BadCredentials, ProviderError: documented, nothing was bought.

        NoAnswer: no connection was made. AmbiguousLaunch: anything else; only the intent's tag in a list can tell.
        """
        # No retry: a launch whose answer is lost may still have bought a machine.
        try:
            path, turn = "/instance-operations/launch", ("request", "launch")
            answer = self.web.once("POST", path, body=order, deadline_s=LAUNCH_DEADLINE_S, turn=turn)
        except NoAnswer as error:
            if not error.sent:
                raise
            raise _ambiguous(intent_id, error.message) from error
        code, text = _error(answer)
        if code in REFUSALS and 400 <= answer.status < 500:
            raise self._refusal(code, text)
        ids = answer.body.get("data", {}).get("instance_ids") if _is_success(answer) else None
        try:
            (instance_id,) = TypeAdapter(list[Id]).validate_python(ids, strict=True)
        except ValueError as error:
            raise _ambiguous(intent_id, f"status {answer.status}, {code or 'not exactly one instance id'}") from error
        return instance_id

    def rename(self, instance_id: str, name: str) -> None:
        """Repeatable. Raises Missing."""
        self.web.until("POST", f"/instances/{instance_id}", self._data, body={"name": name})

    def terminate(self, instance_id: str) -> None:
        """Repeatable; accepted only when the answer names the instance. Raises Missing."""

        def named(answer: Answer) -> None:
            data = self._data(answer)
            rows = _read(list[Row], data.get("terminated_instances") if isinstance(data, dict) else None)
            if instance_id not in [row.id for row in rows]:
                raise NoAnswer(f"{self.web.name}: terminate did not name instance {instance_id}", "try again")

        self.web.until("POST", "/instance-operations/terminate", named, body={"instance_ids": [instance_id]})

    def end_call(self, instance_id: str) -> EndCall:
        """The same request for somebody else to send: the guard on the machine."""
        url, body = f"{self.web.url}/instance-operations/terminate", {"instance_ids": [instance_id]}
        return EndCall(url, body, f"{self.web.url}/instances/{instance_id}", self.web.key)

    def audit_events(self, instance_id: str, since: float | None) -> Iterator[AuditEvent]:
        """What happened to the instance since then, oldest first, over at most MOST_AUDIT_PAGES pages."""
        query = {} if since is None else {"start": datetime.fromtimestamp(since, UTC).isoformat()}
        for _ in range(MOST_AUDIT_PAGES):
            page = self.web.until("GET", "/audit-events", self._page, query=query)
            for event in _read(list[AuditEvent], page.get("data")):
                if any(lrn.rpartition(":")[2] == instance_id for lrn in event.resource_lrns):
                    yield event
            if not page.get("page_token"):
                return
            query["page_token"] = str(page["page_token"])

    def _get(self, path: str, shape: type[T], deadline_s: float | None = None) -> T:
        """The answer's data as `shape`; asked again while it is anything else."""
        deadline_s = READ_DEADLINE_S if deadline_s is None else deadline_s
        return self.web.until("GET", path, lambda answer: _read(shape, self._data(answer)), deadline_s=deadline_s)

    def _data(self, answer: Answer) -> Any:
        return self._page(answer).get("data")

    def _page(self, answer: Answer) -> dict[str, Any]:
        """The body of a success. Raises what the error code means; NoAnswer for an answer that is neither."""
        if _is_success(answer):
            return dict(answer.body)
        code, text = _error(answer)
        if code in REFUSALS:
            raise self._refusal(code, text)
        raise NoAnswer(f"{self.web.name}: status {answer.status} {code}".rstrip(), "try again later")

    def _refusal(self, code: str, text: str) -> ProviderError:
        kind = {NO_CAPACITY: NoCapacity, BAD_KEY: BadCredentials, MISSING: Missing}.get(code, ProviderError)
        return kind(self.web.redacted(f"{self.web.name} refused: {code}: {text}"), hint=REFUSALS[code])


def _is_success(answer: Answer) -> bool:
    return answer.status == 200 and isinstance(answer.body, dict) and "data" in answer.body


def _error(answer: Answer) -> tuple[str, str]:
    """(code, message) of an error; empty where there is none. The code decides: messages may change."""
    error = answer.body.get("error") if isinstance(answer.body, dict) else None
    error = error if isinstance(error, dict) else {}
    return str(error.get("code", ""))[:100], str(error.get("message", ""))


def _ambiguous(intent_id: str, why: str) -> AmbiguousLaunch:
    return AmbiguousLaunch(
        f"the answer to the launch is unclear ({why}): it may have bought a machine",
        hint=f"it is looked for by the tag of intent {intent_id}, and not asked for again",
    )


def _read(shape: type[T], value: Any) -> T:
    """The value as that type. Raises NoAnswer that names what is wrong, not what it was."""
    try:
        return TypeAdapter(shape).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "data"
        raise NoAnswer(f"the answer does not fit the API's document: {where}: {first['msg']}", "try again") from None
