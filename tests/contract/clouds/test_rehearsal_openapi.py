"""The rehearsal cloud speaks the API it stands in for: every answer is valid by the schemas of what gptctl relies on.

They are written here by hand. Where GPTCTL_LAMBDA_OPENAPI names the vendor's OpenAPI document (it is not shipped),
every answer and every launch request is checked against that too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.clouds.rehearsal_cloud import API, RehearsalCloud

TEXT = {"type": "string"}
NUMBER = {"type": "integer"}


def table(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def rows(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


REGION = table({"name": TEXT, "description": TEXT})
SPECS = table({"vcpus": NUMBER, "memory_gib": NUMBER, "storage_gib": NUMBER, "gpus": NUMBER})
TYPE = table(
    {"name": TEXT, "description": TEXT, "gpu_description": TEXT, "price_cents_per_hour": NUMBER, "specs": SPECS}
)
OFFER = table({"instance_type": TYPE, "regions_with_capacity_available": rows(REGION)})
ACTION = table({"available": {"type": "boolean"}}, reason_code=TEXT)
INSTANCE = table(
    {
        "id": TEXT,
        "status": {"enum": ["booting", "active", "unhealthy", "terminated", "terminating", "preempted"]},
        "ssh_key_names": rows(TEXT),
        "file_system_names": rows(TEXT),
        "region": REGION,
        "instance_type": TYPE,
        "actions": table(dict.fromkeys(["migrate", "rebuild", "restart", "cold_reboot", "terminate"], ACTION)),
    },
    name={"type": "string", "maxLength": 64},
    ip={"type": "string", "pattern": r"^\d+\.\d+\.\d+\.\d+$"},
    jupyter_token=TEXT,
    tags=rows(table({"key": TEXT, "value": TEXT})),
)
SSH_KEY = table({"id": TEXT, "name": TEXT, "public_key": TEXT}, private_key=TEXT)
IMAGE = table(
    {"id": TEXT, "name": TEXT, "family": TEXT, "architecture": {"enum": ["x86_64", "arm64"]}, "region": REGION}
)
FILE_SYSTEM = table({"id": TEXT, "name": TEXT, "mount_point": TEXT, "region": REGION})
EVENT = table(
    {"action": TEXT, "event_time": TEXT, "resource_lrns": rows(TEXT), "additional_details": {"type": "object"}}
)
ERROR = table({"error": table({"code": {"type": "string", "pattern": "^[a-z/-]+$"}, "message": TEXT}, suggestion=TEXT)})

DATA = {
    ("get", "instance-types"): {"type": "object", "minProperties": 1, "additionalProperties": OFFER},
    ("post", "instance-operations/launch"): table({"instance_ids": rows(TEXT)}),
    ("post", "instance-operations/terminate"): table({"terminated_instances": rows(INSTANCE)}),
    ("get", "instances"): rows(INSTANCE),
    ("get", "instances/{id}"): INSTANCE,
    ("post", "instances/{id}"): INSTANCE,
    ("get", "ssh-keys"): rows(SSH_KEY),
    ("post", "ssh-keys"): SSH_KEY,
    ("delete", "ssh-keys/{id}"): {"type": "object"},
    ("get", "images"): rows(IMAGE),
    ("get", "regions"): rows(REGION),
    ("get", "file-systems"): rows(FILE_SYSTEM),
    ("get", "audit-events"): rows(EVENT),
}
"""(method, path below /api/v1) -> the schema of `data` in a good answer."""


def vendor_document() -> dict[str, Any] | None:
    """The vendor's OpenAPI document, where the environment says where it is."""
    named = os.environ.get("GPTCTL_LAMBDA_OPENAPI")
    return json.loads(Path(named).read_text()) if named else None


def vendor_schema(document: dict[str, Any], method: str, path: str, status: int) -> dict[str, Any] | None:
    """The document's schema of that answer; None for a status it does not know (429, 5xx)."""
    answer = document["paths"][f"{API}/{path}"][method]["responses"].get(str(status))
    return {**answer["content"]["application/json"]["schema"], "components": document["components"]} if answer else None


def validate(schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator(schema).validate(value)


class Witness:
    """Asks the cloud and checks each answer; `seen` is what was checked, `by_vendor` against the document as well."""

    def __init__(self, cloud: RehearsalCloud) -> None:
        self.cloud = cloud
        self.document = vendor_document()
        self.seen: list[tuple[str, str, int]] = []
        self.by_vendor: list[tuple[str, str, int]] = []

    def ask(self, method: str, path: str, body: Any = None, query: str = "", **path_values: str) -> Any:
        status, answer = self.cloud.ask(method.upper(), path.format(**path_values) + query, body)
        validate(table({"data": DATA[(method, path)]}) if status == 200 else ERROR, answer)
        self.seen.append((method, path, status))
        schema = vendor_schema(self.document, method, path, status) if self.document else None
        if schema:
            validate(schema, answer)
            self.by_vendor.append((method, path, status))
        return answer.get("data", answer)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    with RehearsalCloud(tmp_path / "cloud") as cloud:
        yield Witness(cloud)


def order(witness: Witness) -> dict[str, Any]:
    """A launch with every field gptctl sends."""
    body = witness.cloud.order(
        name="gptctl-x-until-1700000000",
        user_data="#cloud-config\n{}\n",
        image={"family": "lambda-stack-22-04"},
        tags=[
            {"key": "gptctl-rental", "value": "8xa100-1120-abcdef"},
            {"key": "gptctl-ends-at", "value": "1700000000"},
        ],
    )
    if witness.document:
        path = witness.document["paths"][f"{API}/instance-operations/launch"]["post"]
        schema = path["requestBody"]["content"]["application/json"]["schema"]
        validate({**schema, "components": witness.document["components"]}, body)
    return body


def test_every_good_answer(witness: Witness) -> None:
    for path in ("instance-types", "images", "regions", "file-systems", "ssh-keys", "instances"):
        witness.ask("get", path)
    key = witness.ask("post", "ssh-keys", {"name": "made"})
    witness.ask("delete", "ssh-keys/{id}", id=key["id"])
    witness.cloud.inject("decoys@2")
    box = witness.ask("post", "instance-operations/launch", order(witness))["instance_ids"][0]
    assert witness.ask("get", "instances/{id}", id=box)["status"] == "booting"
    witness.cloud.wait_for(box, "active")
    witness.ask("post", "instances/{id}", {"name": "gptctl-x-until-1700003600"}, id=box)
    assert {one["status"] for one in witness.ask("get", "instances")} == {"active"}
    assert len(witness.ask("get", "audit-events", query="?resource_type=instance")) >= 3
    ended = witness.ask("post", "instance-operations/terminate", {"instance_ids": [box]})["terminated_instances"]
    assert [one["status"] for one in ended] == ["terminating"]
    assert {(method, path) for method, path, _ in witness.seen} == set(DATA)
    assert witness.by_vendor == (witness.seen if witness.document else [])


def test_every_status_an_instance_can_have(witness: Witness) -> None:
    seen = set()
    witness.cloud.inject("unhealthy")
    boxes = [witness.cloud.launch() for _ in range(2)]
    seen |= {witness.ask("get", "instances/{id}", id=box)["status"] for box in boxes}
    witness.cloud.wait_for(boxes[0], "unhealthy")
    witness.cloud.wait_for(boxes[1], "active")
    seen |= {one["status"] for one in witness.ask("get", "instances")}
    run = witness.cloud.home(boxes[1]) / ".gptctl/runs/r"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    witness.cloud.inject("preempt")
    witness.cloud.wait_for(boxes[1], "preempted")
    seen |= {one["status"] for one in witness.ask("get", "instances")}
    ended = witness.ask("post", "instance-operations/terminate", {"instance_ids": boxes})["terminated_instances"]
    seen |= {one["status"] for one in ended}
    while listed := witness.ask("get", "instances"):
        seen |= {one["status"] for one in listed}
    assert seen == {"booting", "active", "unhealthy", "preempted", "terminating", "terminated"}
    assert witness.by_vendor == (witness.seen if witness.document else [])


def test_every_documented_refusal(witness: Witness) -> None:
    launch, terminate = "instance-operations/launch", "instance-operations/terminate"
    witness.cloud.inject("no-capacity,quota")
    for _ in range(2):
        witness.ask("post", launch, order(witness))
    witness.ask("post", launch, {**order(witness), "region_name": "moon"})
    witness.ask("post", launch, {**order(witness), "name": "x" * 65})
    witness.ask("post", terminate, {"instance_ids": ["none"]})
    witness.ask("post", terminate, {"instance_ids": []})
    witness.ask("get", "instances/{id}", id="none")
    witness.ask("post", "instances/{id}", {"name": "x" * 65}, id="none")
    witness.ask("post", "ssh-keys", {"name": ""})
    witness.ask("get", "audit-events", query="?start=yesterday")
    witness.cloud.inject("key-revoked")
    witness.ask("get", "instances")
    witness.ask("post", launch, order(witness))
    assert [status for _, _, status in witness.seen] == [400, 400, 404, 400, 404, 400, 404, 404, 400, 400, 401, 401]
    assert witness.by_vendor == (witness.seen if witness.document else [])


@pytest.mark.parametrize("fault", ["429", "500", "unknown-error-code@list"])
def test_what_no_document_mentions_still_has_a_code_and_a_message(witness: Witness, fault: str) -> None:
    witness.cloud.inject(fault)
    status, answer = witness.cloud.ask("GET", "instances")
    validate(ERROR, answer)
    assert status >= 400


@pytest.mark.parametrize("lie", ["wrong-types@types", "wrong-types@list"])
def test_these_schemas_notice_a_lie(witness: Witness, lie: str) -> None:
    witness.cloud.up()
    witness.cloud.inject(lie)
    with pytest.raises(jsonschema.ValidationError):
        witness.ask("get", "instance-types" if lie.endswith("types") else "instances")
