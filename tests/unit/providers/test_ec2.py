"""EC2's answers in our words: refusals, quotas, doubt, states, prices, the policy. botocore's Stubber answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
    TokenRetrievalError,
)
from botocore.stub import Stubber

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import AmbiguousLaunch, BadCredentials, NoAnswer, NoCapacity, ProviderError
from orchestrator.core.fleet.odd_rows import OddRows
from orchestrator.core.machines import bundled_offers_of, machine_type
from orchestrator.core.ports import Instance
from orchestrator.providers.ec2 import prices as ec2_prices
from orchestrator.providers.ec2.api import Ec2Api, Quota, Refused
from orchestrator.providers.ec2.network import allow_each_other
from orchestrator.providers.ec2.policy import least, quota_hint
from orchestrator.providers.ec2.provider import Ec2, everywhere
from orchestrator.providers.ec2.rows import InstanceRow, read_instance
from orchestrator.providers.ec2.states import moment_in, status_of

REGION = "us-east-1"
ORDER = {"ClientToken": "t", "MinCount": 1, "MaxCount": 1}


@pytest.fixture
def api() -> Ec2Api:
    return Ec2Api()


def stubbed(api: Ec2Api, service: str = "ec2", *, once: bool = False) -> Iterator[Stubber]:
    client = boto3.client(service, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="y")
    api._clients[service, REGION, once] = client
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


@pytest.fixture
def launches(api: Ec2Api) -> Iterator[Stubber]:
    yield from stubbed(api, once=True)


@pytest.fixture
def calls(api: Ec2Api) -> Iterator[Stubber]:
    yield from stubbed(api)


@pytest.fixture
def prices(api: Ec2Api) -> Iterator[Stubber]:
    yield from stubbed(api, "pricing")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("InsufficientInstanceCapacity", 500, NoCapacity),
        ("InsufficientHostCapacity", 500, NoCapacity),
        ("UnfulfillableCapacity", 500, NoCapacity),
        ("SpotMaxPriceTooLow", 400, NoCapacity),
        ("RequestLimitExceeded", 503, NoCapacity),
        ("Throttling", 400, NoCapacity),
        ("ThrottlingException", 503, NoCapacity),
        ("VcpuLimitExceeded", 400, Quota),
        ("MaxSpotInstanceCountExceeded", 400, Quota),
        ("UnauthorizedOperation", 403, Refused),
        ("ExpiredToken", 400, BadCredentials),
        ("AuthFailure", 401, BadCredentials),
        ("InvalidAMIID.NotFound", 400, Refused),
        ("InvalidParameterValue", 400, Refused),
        ("VPCIdNotSpecified", 400, Refused),
        ("IdempotentParameterMismatch", 400, AmbiguousLaunch),
        ("InternalError", 500, AmbiguousLaunch),
        ("Unavailable", 503, AmbiguousLaunch),
        ("SomethingNobodyKnows", 400, AmbiguousLaunch),
    ],
)
def test_what_an_error_of_a_launch_means(
    api: Ec2Api, launches: Stubber, code: str, status: int, kind: type[Exception]
) -> None:
    launches.add_client_error("run_instances", code, "words", http_status_code=status)
    with pytest.raises(kind) as caught:
        api.launch(REGION, ORDER)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EndpointConnectionError(endpoint_url="https://x"), NoAnswer),
        (SSLError(endpoint_url="https://x", error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), NoAnswer),
        (SSLError(endpoint_url="https://x", error="EOF occurred in violation of protocol"), AmbiguousLaunch),
        (ReadTimeoutError(endpoint_url="https://x"), AmbiguousLaunch),
        (ConnectionClosedError(endpoint_url="https://x"), AmbiguousLaunch),
        (NoCredentialsError(), BadCredentials),
        (TokenRetrievalError(provider="sso", error_msg="expired"), BadCredentials),
    ],
)
def test_what_no_answer_to_a_launch_means(api: Ec2Api, error: Exception, kind: type[Exception]) -> None:
    class Broken:
        def run_instances(self, **_: Any) -> None:
            raise error

    api._clients["ec2", REGION, True] = Broken()
    with pytest.raises(kind):
        api.launch(REGION, ORDER)


def test_a_throttled_list_decides_nothing_and_a_missing_action_is_named(api: Ec2Api, calls: Stubber) -> None:
    calls.add_client_error("describe_instances", "RequestLimitExceeded", "slow", http_status_code=503)
    with pytest.raises(NoAnswer):
        api.rows(REGION, "describe_instances", "Reservations")
    told = "User: arn:aws:iam::1:user/me is not authorized to perform: ec2:CreateTags on resource: x"
    calls.add_client_error("create_tags", "UnauthorizedOperation", told, http_status_code=403)
    with pytest.raises(Refused, match="may not do ec2:CreateTags") as caught:
        api.call(REGION, "create_tags", Resources=["i-0123456789abcdef0"], Tags=[])
    assert "--policy" in caught.value.hint


def state(name: str, code: str = "", message: str = "", why: str = "", ip: str | None = "203.0.113.5") -> InstanceRow:
    row: dict[str, Any] = {
        "InstanceId": "i-0123456789abcdef0",
        "State": {"Name": name},
        "StateTransitionReason": why,
        "LaunchTime": datetime.now(UTC),
    }
    row["StateReason"] = {"Code": code, "Message": message}
    return read_instance({**row, "PublicIpAddress": ip} if ip else row)


def test_how_a_machine_went_is_told_apart() -> None:
    user = "User initiated (2026-11-20 10:00:00 GMT)"
    ends = {
        "console": state("terminated", "Client.UserInitiatedShutdown", why=user),
        "guard": state("terminated", "Client.InstanceInitiatedShutdown"),
        "spot": state("terminated", "Server.SpotInstanceTermination", why="Server.SpotInstanceTermination"),
        "stopped": state("stopped", "Client.UserInitiatedShutdown", why=user),
        "other": state("terminated", "Client.InternalError", "Client.InternalError: the key of the volume"),
    }
    told = {name: status_of(row) for name, row in ends.items()}
    assert {name: status for name, (status, _) in told.items()} == {
        **dict.fromkeys(("console", "guard", "other"), "terminated"),
        "spot": "preempted",
        "stopped": "stopped",
    }
    assert "console" in told["console"][1] and "powered off from inside" in told["guard"][1]
    assert "spot market" in told["spot"][1] and "the key of the volume" in told["other"][1]
    assert moment_in(told["console"][1]) == datetime(2026, 11, 20, 10, tzinfo=UTC).timestamp()
    assert moment_in("") is None
    assert status_of(state("pending")) == ("booting", "") and status_of(state("running")) == ("active", "")


def test_a_machine_that_gets_no_public_address_is_unhealthy_after_a_while() -> None:
    young = state("running", ip="")
    assert status_of(young)[0] == "active"
    old = replace(young, launched_at=time.time() - 130)
    assert status_of(old) == ("unhealthy", "it has no public address")


def test_prices_of_the_list_and_of_the_spot_market(api: Ec2Api, prices: Stubber, calls: Stubber) -> None:
    def row(option: str, usd: str) -> str:
        term = {"t": {"priceDimensions": {"d": {"pricePerUnit": {"USD": usd}}}}}
        told = {"instanceType": "p5.48xlarge", "regionCode": REGION, "marketoption": option}
        return json.dumps({"product": {"attributes": told}, "terms": {"OnDemand": term}})

    prices.add_response("get_products", {"PriceList": [row("OnDemand", "55.04"), row("CapacityBlock", "0.0")]})
    assert ec2_prices.on_demand(api, ["p5.48xlarge"], OddRows()) == {("p5.48xlarge", REGION): 55.04}
    prices.add_response("get_products", {"PriceList": ['{"product": {}}']})
    with pytest.raises(NoAnswer, match="price list"):
        ec2_prices.on_demand(api, ["p5.48xlarge"], OddRows())
    seen = [
        {"InstanceType": "g5.xlarge", "AvailabilityZone": "us-east-1a", "SpotPrice": usd} for usd in ("0.41", "0.47")
    ]
    calls.add_response("describe_spot_price_history", {"SpotPriceHistory": seen})
    assert ec2_prices.spot(api, REGION, ["g5.xlarge"], OddRows()) == {("g5.xlarge", "us-east-1a"): 0.47}


@pytest.mark.parametrize(
    ("sku", "spot", "code"),
    [
        ("p4d.24xlarge", False, "L-417A185B"),
        ("p5.48xlarge", False, "L-417A185B"),
        ("p5.48xlarge", True, "L-C4BD4855"),
        ("p4d.24xlarge", True, "L-7212CCBC"),
        ("g6.xlarge", False, "L-DB2E81BA"),
        ("c6i.xlarge", True, "L-34B43A08"),
    ],
)
def test_a_quota_is_named_with_its_code_and_its_page(sku: str, spot: bool, code: str) -> None:
    hint = quota_hint(sku, "eu-west-1", spot=spot)
    assert f" {code} " in hint and f"quotas/{code}" in hint and "eu-west-1.console" in hint


def test_only_what_carries_our_tag_can_be_ended_or_changed() -> None:
    statements = least()["Statement"]
    for action in ("ec2:TerminateInstances", "ec2:DeleteSecurityGroup", "ec2:RevokeSecurityGroupIngress"):
        allowing = [each for each in statements if action in each["Action"]]
        assert [each["Condition"] for each in allowing] == [{"Null": {"aws:ResourceTag/gptctl-rental": "false"}}]
    assert "iam:PassRole" not in json.dumps(statements)


def test_a_machine_or_disk_is_launched_with_our_tag_or_not_at_all() -> None:
    launching = [each for each in least()["Statement"] if "ec2:RunInstances" in each["Action"]]
    bound = [each for each in launching if each.get("Condition") == {"Null": {"aws:RequestTag/gptctl-rental": "false"}}]
    assert bound and all(each["Resource"] != "*" for each in launching)
    makes = ("instance", "volume")
    for each in launching:
        kinds = {arn.rpartition(":")[2].partition("/")[0] for arn in each["Resource"]}
        assert kinds == {*makes} if each in bound else not kinds & {*makes}


def cloud(api: Ec2Api, **entry: Any) -> Ec2:
    host = HostSpec(name="x", provider="ec2", machine="8xA100-40GB", regions=(REGION,), **entry)
    return Ec2("ec2", host, machine_type("8xA100-40GB"), api)


def test_guard_self_stands_on_ec2s_own_word(api: Ec2Api, calls: Stubber) -> None:
    there = Instance("ec2", "i-0123456789abcdef0", "8xA100-40GB", region=REGION)
    for behaviour, armed in (("terminate", True), ("stop", False)):
        calls.add_response("describe_instance_attribute", {"InstanceInitiatedShutdownBehavior": {"Value": behaviour}})
        assert cloud(api, guard="self").guard(there).armed is armed
    assert cloud(api).end_call(there) is None
    assert cloud(api).notice_url(there) is None
    assert cloud(api, spot=True).notice_url(there) == "http://169.254.169.254"


def test_somebody_elses_instance_is_left_alone(api: Ec2Api, calls: Stubber) -> None:
    row = {"InstanceId": "i-0123456789abcdef0", "InstanceType": "p4d.24xlarge", "LaunchTime": datetime.now(UTC),
           "State": {"Name": "running"}, "PublicIpAddress": "203.0.113.5"}  # fmt: skip
    calls.add_response("describe_instances", {"Reservations": [{"Instances": [row]}]})
    with pytest.raises(ProviderError, match="not ours"):
        cloud(api).release(Instance("ec2", row["InstanceId"], "8xA100-40GB", rental_id="r", region=REGION))


def test_an_account_is_asked_in_every_region_and_market_that_an_entry_names() -> None:
    one = HostSpec(name="a", provider="ec2", machine="1xL4", regions=("us-east-1",))
    two = HostSpec(name="b", provider="ec2", machine="1xL4", regions=("us-west-2", "us-east-1"), spot=True)
    joined = everywhere([one, two])
    assert (joined.regions, joined.spot) == (("us-east-1", "us-west-2"), True)


def test_every_instance_type_has_one_name() -> None:
    sold = [offer.sku for offer in bundled_offers_of("ec2")]
    assert len(sold) == len(set(sold)) and "p4d.24xlarge" in sold


OURS: dict[str, Any] = {"InstanceId": "i-0123456789abcdef0", "Tags": [{"Key": "gptctl-rental", "Value": "r"}]}


def test_an_instance_is_kept_and_ended_by_its_id_whatever_its_row_lacks(api: Ec2Api, calls: Stubber) -> None:
    made = cloud(api)
    calls.add_response("describe_instances", {"Reservations": [{"Instances": [{"ImageId": "ami-1"}, OURS]}, {}]})
    (found,) = made.machines()
    assert (found.instance_id, found.rental_id) == (OURS["InstanceId"], "r")
    assert (found.status, found.machine) == ("unknown", "unknown")
    lines = made.take_warnings()
    assert len(lines) == 2 and "row 1" in lines[0] and "no State, no InstanceType, no LaunchTime" in lines[1]
    calls.add_response("describe_instances", {"Reservations": [{"Instances": [OURS]}]})
    calls.add_response("terminate_instances", {}, {"InstanceIds": [OURS["InstanceId"]]})
    assert made.release(found) and made.take_warnings() == []


def test_an_instance_that_no_list_has_is_ended_by_its_id(api: Ec2Api, calls: Stubber) -> None:
    ours = Instance("ec2", "i-0123456789abcdef0", "8xA100-40GB", rental_id="r", region=REGION)
    calls.add_response("describe_instances", {"Reservations": []})
    calls.add_response("terminate_instances", {}, {"InstanceIds": [ours.instance_id]})
    assert cloud(api).release(ours)
    for _ in range(2):
        calls.add_client_error("describe_instances", "InvalidInstanceID.NotFound", "no", http_status_code=400)
    calls.add_client_error("terminate_instances", "InvalidInstanceID.NotFound", "no", http_status_code=400)
    assert cloud(api).find(ours.instance_id, REGION) == "unknown"
    assert not cloud(api).release(ours)


@pytest.mark.parametrize(
    ("name", "life"),
    [("running", "alive"), ("pending", "alive"), ("stopped", "alive"), ("stopping", "alive"),
     ("shutting-down", "terminating"), ("terminated", "gone")],
)  # fmt: skip
def test_what_ec2_says_of_an_id(api: Ec2Api, calls: Stubber, name: str, life: str) -> None:
    calls.add_response("describe_instances", {"Reservations": [{"Instances": [{**OURS, "State": {"Name": name}}]}]})
    assert cloud(api).find(OURS["InstanceId"]) == life


def test_an_odd_price_hides_no_other(api: Ec2Api, calls: Stubber) -> None:
    rows = [{"InstanceType": "g5.xlarge"}, {"InstanceType": "g5.xlarge", "AvailabilityZone": "a", "SpotPrice": "0.4"}]
    calls.add_response("describe_spot_price_history", {"SpotPriceHistory": rows})
    assert ec2_prices.spot(api, REGION, ["g5.xlarge"], OddRows()) == {("g5.xlarge", "a"): 0.4}


@pytest.mark.parametrize("known", [False, True])
def test_the_nodes_of_a_rental_reach_each_other_and_nobody_else(api: Ec2Api, calls: Stubber, known: bool) -> None:
    inside = [{"GroupId": "sg-1", "Description": "gptctl, the nodes of this rental"}]
    asked = {
        "GroupId": "sg-1",
        "IpPermissions": [{"IpProtocol": "tcp", "FromPort": 0, "ToPort": 65_535, "UserIdGroupPairs": inside}],
    }
    if known:
        calls.add_client_error("authorize_security_group_ingress", "InvalidPermission.Duplicate", expected_params=asked)
    else:
        calls.add_response("authorize_security_group_ingress", {}, asked)
    allow_each_other(api, REGION, "sg-1")
    assert not calls._queue


def test_a_machine_has_its_private_address() -> None:
    assert read_instance({"InstanceId": "i-1", "PrivateIpAddress": "172.31.0.5"}).private_ip == "172.31.0.5"
