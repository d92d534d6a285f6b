"""The Lambda Cloud API 1.10.0, as much of it as gptctl uses: calls, pages and error codes. rows.py has the shapes.

The provider decides what an answer means for a rental. Reads and repeatable writes are repeated within a deadline; a
launch is one request, and only the documented refusals count as "nothing was bought".

Example: `[row.id for row in LambdaApi(web).machines(lambda row: "gptctl-rental" in row.by_key).rows]`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.core.errors import AmbiguousLaunch, BadCredentials, NoAnswer, NoCapacity, ProviderError
from orchestrator.core.ports import EndCall
from orchestrator.providers.lambda_cloud.rows import (
    AuditEvent,
    FileSystem,
    Id,
    Image,
    Machine,
    Order,
    Part,
    Rows,
    Sold,
    SshKey,
    read_machine,
    read_machines,
    read_rows,
)
from orchestrator.remote.web.json_api import Answer, WebApi

ENDPOINT = "https://cloud.lambda.ai"
PATH = "/api/v1"
EVERY_S: Final = {"request": 1.0, "launch": 12.0}
"""What Lambda allows, over everything that uses the account."""
LAUNCH_DEADLINE_S = 60.0
READ_DEADLINE_S = 30.0
LOOK_FIRST_S = 5.0
"""How long release asks whose machine it is. Silence does not keep it from ending the machine."""
MOST_PAGES = 20
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
    "global/not-found": "check `endpoint` of the host entry",
    "global/duplicate": "run the command again",
    "global/conflict": "run the command again",
}
"""The documented ways to refuse, each with what to do. For a launch: nothing was bought."""

T = TypeVar("T")
P = TypeVar("P", bound=Part)


class Missing(ProviderError):
    """What was asked for is not there, says an answer that may lag behind."""


@dataclass(frozen=True)
class LambdaApi:
    """One account. Raises BadCredentials, NoAnswer, or ProviderError for a refusal; messages name `web.name`."""

    web: WebApi

    def types(self, deadline_s: float = 30.0) -> Rows[Sold]:
        """Everything on sale."""

        def read(answer: Answer) -> Rows[Sold]:
            by_name = self._data(answer)
            return read_rows(Sold, list(by_name.values()) if isinstance(by_name, dict) else by_name)

        return self.web.until("GET", "/instance-types", read, deadline_s=deadline_s)

    def machines(self, is_ours: Callable[[Machine], bool]) -> Rows[Machine]:
        """Our instances, over all pages. Of the others only id, name and tags are looked at."""
        pages = self._pages("/instances", lambda page: read_machines(page, is_ours))
        return sum(pages, Rows[Machine]())

    def instance(self, instance_id: str, deadline_s: float | None = None) -> Machine:
        """Raises Missing."""

        def read(answer: Answer) -> Machine:
            try:
                return read_machine(self._data(answer))[0]
            except ValidationError:
                raise NoAnswer(
                    f"{self.web.name}: the answer has no readable id of {instance_id}", "try again"
                ) from None

        deadline_s = READ_DEADLINE_S if deadline_s is None else deadline_s
        return self.web.until("GET", f"/instances/{instance_id}", read, deadline_s=deadline_s)

    def ssh_keys(self) -> list[SshKey]:
        """The account's login keys."""
        return self._rows("/ssh-keys", SshKey)

    def add_ssh_key(self, name: str, public_key: str) -> None:
        """One request: a name can be registered once only, and ssh_keys() shows whether it was."""
        answer = self.web.once("POST", "/ssh-keys", body={"name": name, "public_key": public_key})
        self._data(answer)

    def images(self) -> list[Image]:
        """All regions' images."""
        return self._rows("/images", Image)

    def file_systems(self) -> list[FileSystem]:
        """The account's persistent file systems."""
        return self._rows("/file-systems", FileSystem)

    def launch(self, order: Order, intent_id: str) -> str:
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
            rows = data.get("terminated_instances") if isinstance(data, dict) else None
            ids = [row.get("id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
            if instance_id not in ids:
                raise NoAnswer(f"{self.web.name}: terminate did not name instance {instance_id}", "try again")

        self.web.until("POST", "/instance-operations/terminate", named, body={"instance_ids": [instance_id]})

    def end_call(self, instance_id: str) -> EndCall:
        """The same request, for the guard on the machine to send."""
        url, body = f"{self.web.url}/instance-operations/terminate", {"instance_ids": [instance_id]}
        return EndCall(url, body, f"{self.web.url}/instances/{instance_id}", self.web.key)

    def audit_events(self, instance_id: str, since: float | None) -> Iterator[AuditEvent]:
        """What happened to the instance since then, oldest first; an event that cannot be read is left out."""
        query = {} if since is None else {"start": datetime.fromtimestamp(since, UTC).isoformat()}
        for page in self._pages("/audit-events", lambda rows: read_rows(AuditEvent, rows), query):
            for event in page.rows:
                if any(lrn.rpartition(":")[2] == instance_id for lrn in event.resource_lrns):
                    yield event

    def _rows(self, path: str, shape: type[P]) -> list[P]:
        return [row for page in self._pages(path, lambda rows: read_rows(shape, rows)) for row in page.rows]

    def _pages(
        self, path: str, read: Callable[[object], Rows[P]], query: Mapping[str, str] | None = None
    ) -> Iterator[Rows[P]]:
        """All pages of a list. Raises NoAnswer for one that does not end, or whose next page cannot be asked for."""
        asked = dict(query or {})

        def read_page(answer: Answer) -> tuple[Rows[P], str]:
            body = self._body(answer)
            return read(body["data"]), self._next_page(body)

        for _ in range(MOST_PAGES):
            page, token = self.web.until("GET", path, read_page, query=asked, deadline_s=READ_DEADLINE_S)
            yield page
            if not token:
                return
            if token == asked.get("page_token"):
                break
            asked["page_token"] = token
        raise NoAnswer(f"{self.web.name}: the list {path} does not end", "try again later")

    def _next_page(self, body: Mapping[str, object]) -> str:
        """The token of the next page; empty on the last one. Raises NoAnswer for one that cannot be read."""
        token = body.get("page_token") or ""
        others = [name for name, value in body.items() if value and name not in ("data", "page_token")]
        more = [name for name in others if "next" in name or "token" in name or "cursor" in name]
        if more or not isinstance(token, str):
            what = more[0] if more else "page_token"
            raise NoAnswer(f"{self.web.name}: a list has a next page that gptctl cannot read: {what}", "try again")
        return token

    def _data(self, answer: Answer) -> object:
        return self._body(answer)["data"]

    def _body(self, answer: Answer) -> Mapping[str, object]:
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
