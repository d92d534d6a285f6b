"""Every request we send and every answer of the rehearsal cloud fit the API's document (see lambda_schemas.py).

One walk through everything the provider does, and through every documented refusal, is recorded and judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from jsonschema import ValidationError

from orchestrator.core.errors import ProviderError
from orchestrator.remote.shell.key_pairs import new_key_pair
from orchestrator.stages.machine.first_contact.cloud_init import user_data
from tests.support.clock.waiting import until
from tests.support.clouds.lambda_account import Account, Exchange
from tests.support.clouds.lambda_schemas import ANSWERS, answer_validator, operation, request_validator
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

REFUSED = {
    ("post", "/instance-operations/launch"): {400, 401, 404},
    ("post", "/instance-operations/terminate"): {401, 404},
    ("get", "/instances"): {401},
    ("get", "/instances/{id}"): {401, 404},
}


@pytest.fixture(scope="module")
def exchanges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Exchange]]:
    """Everything that passed in the life of one machine, and in launches and calls that were refused."""
    folder = tmp_path_factory.mktemp("lambda")
    with pytest.MonkeyPatch.context() as patch, RehearsalCloud(folder / "cloud") as cloud:
        patch.setenv("GPTCTL_HOME", str(folder / "home"))
        account = Account(cloud, image="lambda-stack-22-04")
        _life(account)
        _refusals(account)
        yield account.exchanges


def _life(account: Account) -> None:
    account.provider.offers()
    account.cloud.inject("decoys")
    request = account.request(user_data=user_data(new_key_pair("rental")), tags={"gptctl-run": "quickstart"})
    instance = account.provider.acquire(request)
    until(lambda: account.seen(instance.instance_id).address is not None)
    account.provider.set_deadline(instance, 1_900_000_000)
    account.provider.release(instance)
    account.provider.machines()
    account.provider.ended_at(instance)
    until(lambda: account.provider.machines() == [])
    account.provider.release(instance)


def _refusals(account: Account) -> None:
    for fault in ("no-capacity", "quota", "key-revoked@launch*1"):
        account.cloud.inject(fault)
        with pytest.raises(ProviderError):
            account.provider.acquire(account.request())
    for wrong in ({"sku": "gpu_9x_b300"}, {"region": "mars-1"}):
        with pytest.raises(ProviderError):
            account.provider.acquire(account.request(offer=account.offer(**wrong)))
    instance = account.up()
    for call in ("get", "terminate", "list"):
        account.cloud.inject(f"key-revoked@{call}*1")
        with suppress(ProviderError):
            account.provider.release(instance)
            account.provider.machines()


def test_every_call_was_made(exchanges: list[Exchange]) -> None:
    seen = {operation(one.method, one.path) for one in exchanges if one.status == 200}
    assert seen == set(ANSWERS)
    refused = {(operation(one.method, one.path), one.status) for one in exchanges if one.status != 200}
    assert {(call, status) for call, statuses in REFUSED.items() for status in statuses} <= refused


def test_every_request_fits(exchanges: list[Exchange]) -> None:
    sent = [one for one in exchanges if one.method == "POST"]
    assert len(sent) >= 8
    for one in sent:
        request_validator(one.method, one.path).validate(one.body)
    assert all(one.body is None for one in exchanges if one.method == "GET")


def test_every_answer_fits(exchanges: list[Exchange]) -> None:
    assert len(exchanges) >= 30
    for one in exchanges:
        answer_validator(one.method, one.path, one.status).validate(one.answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/instance-operations/launch", {"region_name": "us-west-1", "ssh_key_names": ["me"]}),
        ("/instance-operations/launch", {"region_name": "r", "instance_type_name": "t", "ssh_key_names": "me"}),
        ("/instances/x", {"name": "n" * 65}),
        ("/ssh-keys", {"public_key": "ssh-ed25519 AAAA"}),
    ],
)
def test_a_wrong_request_would_be_noticed(path: str, body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        request_validator("POST", path).validate(body)


def test_a_wrong_answer_would_be_noticed(exchanges: list[Exchange]) -> None:
    listed = next(one for one in exchanges if one.path == "/instances" and one.status == 200 and one.answer["data"])
    wrong = {**listed.answer["data"][0], "status": "asleep"}
    with pytest.raises(ValidationError):
        answer_validator("GET", "/instances", 200).validate({"data": [wrong]})
