"""Lists of Lambda with rows that nobody expects: what is kept, what is left out, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import AmbiguousLaunch, NoAnswer, ProviderError
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import Instance
from orchestrator.providers.lambda_cloud import api as lambda_api
from orchestrator.providers.lambda_cloud.api import LambdaApi
from orchestrator.providers.lambda_cloud.provider import LambdaCloud
from orchestrator.remote.web.json_api import Answer, WebApi

T = TypeVar("T")
RENTAL = "8xa100-1120-abcdef"
NAME = f"gptctl-{RENTAL}-until-1900000000"
TAGS = [{"key": "gptctl-rental", "value": RENTAL}, {"key": "gptctl-intent", "value": "i"}]
TYPE = {
    "name": "gpu_8x_a100",
    "gpu_description": "A100 (40 GB SXM4)",
    "price_cents_per_hour": 1592,
    "specs": {"gpus": 8, "storage_gib": 6144},
}
WHOLE: dict[str, Any] = {
    "id": "0a1b",
    "status": "active",
    "name": NAME,
    "ip": "198.51.100.2",
    "tags": TAGS,
    "region": {"name": "us-west-1"},
    "instance_type": TYPE,
    "actions": {},
}


@dataclass
class Web:
    """Answers by path, in their order; the last one stays. No retries: what a reader refuses is raised."""

    answers: dict[str, list[Answer]]
    asked: list[tuple[str, str, object]] = field(default_factory=list)
    name: str = "Lambda Cloud"
    url: str = "http://127.0.0.1:1"

    def once(self, method: str, path: str, **options: Any) -> Answer:
        self.asked.append((method, path, options.get("query") or options.get("body")))
        left = self.answers[path]
        return left.pop(0) if len(left) > 1 else left[0]

    def until(self, method: str, path: str, read: Callable[[Answer], T], **options: Any) -> T:
        return read(self.once(method, path, **options))

    def redacted(self, text: str) -> str:
        return text


def cloud(**answers: Any) -> tuple[LambdaCloud, Web]:
    paths = {"/" + path.replace("__", "/").replace("_", "-"): found for path, found in answers.items()}
    web = Web({path: found if isinstance(found, list) else [found] for path, found in paths.items()})
    host = HostSpec(name="box", provider="lambda", machine="8xA100-40GB")
    return LambdaCloud("lambda", host, machine_type("8xA100-40GB"), lambda: LambdaApi(cast(WebApi, web))), web


def rows(*data: object, **more: object) -> Answer:
    return Answer(200, {"data": list(data), **more})


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


STRANGERS = [
    {"id": "../../etc", "name": "x"},
    {"id": 5, "status": None},
    {"id": "ffff", "name": "theirs", "instance_type": {"name": "gpu_9x_z"}},
    {},
    "not a row",
    None,
]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_strangers_row_hides_nothing(stranger: object) -> None:
    made, _ = cloud(instances=rows(stranger, WHOLE))
    (found,) = made.machines()
    assert (found.instance_id, found.rental_id, found.price_per_hour_usd) == ("0a1b", RENTAL, 15.92)
    said = made.take_warnings()
    assert len(said) <= 1 and all("row 1" in line for line in said)
    made.machines()
    assert made.take_warnings() == []


@pytest.mark.parametrize(
    "odd",
    [
        *(without(WHOLE, name) for name in WHOLE if name not in ("id", "name", "tags")),
        without(WHOLE, "tags"),
        without(WHOLE, "name"),
        {"id": "0a1b", "name": NAME},
        {"id": "0a1b", "tags": TAGS},
        {**WHOLE, "tags": [None, {"key": 1}, *TAGS]},
        {**WHOLE, "tags": None},
        {**WHOLE, "status": "sleeping"},
        {**WHOLE, "status": 7, "ip": "not an address", "region": [], "instance_type": "gpu"},
        {**WHOLE, "instance_type": {**TYPE, "price_cents_per_hour": "free"}},
        {**WHOLE, "private_ip": "not an address"},
        {**WHOLE, "private_ip": ["10.0.0.2"]},
    ],
)
def test_a_machine_of_ours_is_kept_whatever_its_row_lacks(odd: dict[str, Any]) -> None:
    made, web = cloud(
        instances=rows(odd),
        instances__0a1b=Answer(200, {"data": odd}),
        instance_operations__terminate=Answer(200, {"data": {"terminated_instances": [{"id": "0a1b"}]}}),
    )
    (found,) = made.machines()
    assert (found.instance_id, found.rental_id) == ("0a1b", RENTAL)
    assert made.release(found)
    assert web.asked[-1] == ("POST", "/instance-operations/terminate", {"instance_ids": ["0a1b"]})
    assert made.find("0a1b") == "alive"


def test_every_page_is_read_and_a_page_that_cannot_be_asked_for_is_an_error() -> None:
    made, web = cloud(instances=[rows(page_token="two"), rows({"id": "ff"}, page_token="three"), rows(WHOLE)])
    assert [found.instance_id for found in made.machines()] == ["0a1b"]
    assert [path for _, path, _ in web.asked] == ["/instances"] * 3
    for more in ({"next_page_token": "x"}, {"next": "/instances?2"}, {"cursor": "c"}, {"page_token": ["x"]}):
        with pytest.raises(NoAnswer):
            cloud(instances=rows(WHOLE, **more))[0].machines()
    with pytest.raises(NoAnswer, match="does not end"):
        cloud(instances=rows(WHOLE, page_token="again"))[0].machines()


@pytest.mark.parametrize("data", [None, {}, "rows", ["a", 1, None]])
def test_what_is_not_a_list_of_objects_is_no_list(data: object) -> None:
    with pytest.raises(NoAnswer):
        cloud(instances=Answer(200, {"data": data}))[0].machines()


def test_an_odd_offer_is_left_out_and_named_once() -> None:
    good = {"instance_type": TYPE, "regions_with_capacity_available": [{"name": "us-west-1"}]}
    made, _ = cloud(instance_types=Answer(200, {"data": {"a": good, "b": {"instance_type": {"name": "new"}}}}))
    assert [offer.sku for offer in made.offers()] == ["gpu_8x_a100"]
    (line,) = made.take_warnings()
    assert line.startswith("lambda: Sold in row 2 of the list: instance_type.gpu_description")
    with pytest.raises(NoAnswer):
        cloud(instance_types=Answer(200, {"data": {"b": {"instance_type": {"name": "new"}}}}))[0].offers()


def test_the_end_is_asked_for_without_a_list_and_without_an_answer_to_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambda_api, "LOOK_FIRST_S", 0.0)
    ended = Answer(200, {"data": {"terminated_instances": [{"id": "0a1b"}]}})
    missing = Answer(404, {"error": {"code": "global/object-does-not-exist", "message": "no"}})
    ours = Instance("lambda", "0a1b", "8xA100-40GB", rental_id=RENTAL)
    for look in (Answer(500, None), Answer(200, {"data": None}), missing):
        made, web = cloud(instances=rows(), instances__0a1b=look, instance_operations__terminate=ended)
        assert made.release(ours)
        assert [path for _, path, _ in web.asked] == ["/instances/0a1b", "/instance-operations/terminate"]
    made, web = cloud(instances__0a1b=missing, instance_operations__terminate=missing)
    assert not made.release(ours) and made.find("0a1b") == "unknown"


@pytest.mark.parametrize(
    ("theirs", "rental"),
    [
        ({"name": "theirs"}, RENTAL),
        ({"name": "gptctl-other-until-19", "tags": []}, RENTAL),
        ({"tags": [{"key": "team", "value": "vision"}]}, RENTAL),
        ({"tags": None}, None),
    ],
)
def test_a_machine_with_the_marks_of_another_is_left_alone(theirs: dict[str, Any], rental: str | None) -> None:
    row = {**without(WHOLE, "tags", "name"), **theirs}
    made, web = cloud(instances__0a1b=Answer(200, {"data": row}))
    with pytest.raises(ProviderError, match="left alone"):
        made.release(Instance("lambda", "0a1b", "8xA100-40GB", rental_id=rental))
    assert len(web.asked) == 1


def test_a_machine_that_shows_no_mark_is_ended_by_the_id_that_the_ledger_has() -> None:
    ended = Answer(200, {"data": {"terminated_instances": [{"id": "0a1b"}]}})
    look = Answer(200, {"data": without(WHOLE, "tags", "name")})
    made, _ = cloud(instances__0a1b=look, instance_operations__terminate=ended)
    assert made.release(Instance("lambda", "0a1b", "8xA100-40GB", rental_id=RENTAL))


@pytest.mark.parametrize(
    ("status", "code", "refused"),
    [
        (400, "instance-operations/launch/insufficient-capacity", True),
        (403, "global/account-inactive", True),
        (404, "global/object-does-not-exist", True),
        (404, "global/not-found", True),
        (409, "global/conflict", True),
        (429, "global/quota-exceeded", True),
        (429, "global/too-many-requests", False),
        (500, "global/internal-error", False),
        (500, "global/quota-exceeded", False),
    ],
)
def test_only_a_documented_code_says_that_nothing_was_bought(status: int, code: str, refused: bool) -> None:
    made, _ = cloud(instance_operations__launch=Answer(status, {"error": {"code": code, "message": "words"}}, 60.0))
    with pytest.raises(ProviderError) as caught:
        made._api.launch({}, "intent")
    assert isinstance(caught.value, AmbiguousLaunch) is not refused
