"""EC2's rows of the fault table, against moto with a fault layer in front and a real sshd behind every instance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.cloud.ec2_place import Ec2Place, without_credentials
from tests.faults.here.crashing import WHEN
from tests.stories.conftest import wait_until
from tests.support.clouds.ec2_cloud import LOST, Ec2Cloud

pytestmark = pytest.mark.faults
SPOT = {"more": 'guard = "watcher"\nspot = true'}


@pytest.fixture
def rent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Ec2Place]]:
    """`rent("EC2: a row of the table", steps=60)`: a fresh account, home and host."""
    with Ec2Cloud(tmp_path) as cloud:
        made: list[Ec2Place] = []

        def make(fault: str, **entry: object) -> Ec2Place:
            place = Ec2Place(cloud, fault, request.node.user_properties)
            place.write(**entry)  # type: ignore[arg-type]
            made.append(place)
            return place

        yield make
        for place in made:
            place.close()


@pytest.mark.parametrize(
    ("fault", "action", "code", "more"),
    [
        ("EC2 F17 launch bought, answer lost", "RunInstances", LOST, {"after": True}),
        ("EC2 F17 launch bought, answer 500", "RunInstances", "InternalError", {"after": True, "status": 500}),
        ("EC2 F19 no capacity in one zone", "RunInstances", "InsufficientInstanceCapacity", {"status": 500}),
        ("EC2 zone does not have the type after all", "RunInstances", "Unsupported", {}),
        ("EC2 F16 throttled while listing", "DescribeInstances", "RequestLimitExceeded", {"status": 503, "times": 3}),
        ("EC2 F22 end answers 500", "TerminateInstances", "InternalError", {"status": 500}),
        ("EC2 F23 end done, its answer lost", "TerminateInstances", LOST, {"after": True}),
        ("EC2 security group in use at cleanup", "DeleteSecurityGroup", "DependencyViolation", {"times": 3}),
        ("EC2 group made, its answer lost", "CreateSecurityGroup", LOST, {"after": True}),
        ("EC2 image's parameter may not be read", "GetParameter", "AccessDeniedException", {}),
    ],
)  # fmt: skip
def test_the_run_finishes_and_nothing_is_left(
    rent: Callable[..., Ec2Place], fault: str, action: str, code: str, more: dict[str, object]
) -> None:
    place = rent(fault)
    place.cloud.inject(action, code, **more)
    run = place.run()
    assert run.returncode == 0, run.stderr
    assert place.cloud.fired, "the fault never happened"
    place.check()


def test_a_new_instance_is_unknown_for_three_seconds(rent: Callable[..., Ec2Place]) -> None:
    place = rent("EC2 InvalidInstanceID.NotFound after the launch")
    place.cloud.lag_s = 3.0
    run = place.run()
    assert run.returncode == 0, run.stderr
    assert len(place.cloud.books) == 1
    place.check()


def test_the_price_list_does_not_answer(rent: Callable[..., Ec2Place]) -> None:
    place = rent("EC2 price list unreachable: the bundled price, said")
    place.cloud.inject("GetProducts", "InternalServerError", status=500, times=10_000)
    run = place.run()
    assert run.returncode == 0, run.stderr
    assert "bundled 2026" in run.stderr
    place.check()


@pytest.mark.parametrize(
    ("fault", "code", "exit_code", "words", "more"),
    [
        ("EC2 no capacity in any zone", "InsufficientInstanceCapacity", 3, ("us-east-1a", "--wait"), {}),
        ("EC2 no host capacity", "InsufficientHostCapacity", 3, ("--wait",), {}),
        ("EC2 quota 0", "VcpuLimitExceeded", 3, ("L-1216C47A", "servicequotas"), {}),
        ("EC2 quota of spot requests", "MaxSpotInstanceCountExceeded", 3, ("L-34B43A08",), SPOT),
        ("EC2 spot price above our limit", "SpotMaxPriceTooLow", 3, ("--wait",), SPOT),
        ("EC2 not allowed to launch", "UnauthorizedOperation", 3, ("ec2:RunInstances", "--policy"), {}),
        ("EC2 token with other parameters", "IdempotentParameterMismatch", 3, ("never seen",), {}),
        ("EC2 key pair deleted meanwhile", "InvalidKeyPair.NotFound", 3, ("import it again",), {}),
    ],
)  # fmt: skip
def test_the_launch_is_refused_and_nothing_is_left(
    rent: Callable[..., Ec2Place], fault: str, code: str, exit_code: int, words: tuple[str, ...], more: dict[str, str]
) -> None:
    place = rent(fault, **more)
    place.cloud.inject("RunInstances", code, times=100)
    run = place.run()
    assert run.returncode == exit_code, run.stderr
    for word in words:
        assert word in run.stderr
    assert "Traceback" not in run.stderr
    assert place.cloud.books == []
    place.check(outcome="never_started")


def test_a_quota_of_one_region_leads_to_the_next_region(rent: Callable[..., Ec2Place]) -> None:
    """Asked once in each region, not in each of its zones."""
    place = rent("EC2 quota of one region: the next is asked")
    _replace('"us-east-1"]', '"us-east-1", "us-west-2"]')(place.cloud)
    place.cloud.inject("RunInstances", "VcpuLimitExceeded")
    place.cloud.inject("RunInstances", "VcpuLimitExceeded")
    run = place.run()
    assert run.returncode == 3 and "L-1216C47A" in run.stderr, run.stderr
    assert place.cloud.actions.count("ec2:RunInstances") == len(place.cloud.fired) == 2
    place.check(outcome="never_started")


def _replace(old: str, new: str) -> Callable[[Ec2Cloud], None]:
    def replace(cloud: Ec2Cloud) -> None:
        file = cloud.folder / "inventory.toml"
        file.write_text(file.read_text().replace(old, new))

    return replace


def _delete_subnets(cloud: Ec2Cloud) -> None:
    console = cloud.client()
    for subnet in console.describe_subnets()["Subnets"]:
        console.delete_subnet(SubnetId=subnet["SubnetId"])


@pytest.mark.parametrize(
    ("fault", "breaks", "exit_code", "words"),
    [
        ("EC2 no credentials", without_credentials, 3, ("aws sso login",)),
        ("EC2 wrong region", _replace('"us-east-1"', '"us-esat-1"'), 2, ("us-esat-1",)),
        ("EC2 image gone", _replace("guard", 'image = "ami-0dead"\nguard'), 3, ("ami-0dead", "image")),
        ("EC2 no default VPC", _delete_subnets, 3, ("create-default-vpc",)),
    ],
)  # fmt: skip
def test_the_account_is_not_fit(
    rent: Callable[..., Ec2Place],
    fault: str,
    breaks: Callable[[Ec2Cloud], None],
    exit_code: int,
    words: tuple[str, ...],
) -> None:
    place = rent(fault)
    breaks(place.cloud)
    run = place.run()
    assert run.returncode == exit_code, run.stderr
    for word in words:
        assert word in run.stderr
    assert "Traceback" not in run.stderr
    assert place.cloud.books == []
    place.check(outcome=None)


@pytest.mark.parametrize(
    ("fault", "what", "cause"),
    [
        ("EC2 terminated from the console mid-run", Ec2Cloud.end_from_console, "it was ended"),
        ("EC2 stopped instead of terminated", Ec2Cloud.stop_from_console, "stopped"),
        ("EC2 F6 spot machine gone without notice", Ec2Cloud.take_away, "spot market"),
    ],
)  # fmt: skip
def test_the_machine_goes_while_it_trains(
    rent: Callable[..., Ec2Place], fault: str, what: Callable[[Ec2Cloud, str], object], cause: str
) -> None:
    spot = "\nspot = true" * ("spot" in fault)
    place = rent(fault, steps=20_000, every=200, more='guard = "watcher"' + spot)
    process = place.begin()
    place.until_step(250)
    what(place.cloud, place.cloud.machine())
    assert process.wait(480) == 3, place.words()
    assert cause in place.words() and "destroyed" in place.words()
    place.check(outcome="preempted")


def test_the_callers_address_changes(rent: Callable[..., Ec2Place]) -> None:
    place = rent("EC2 caller's address changed", steps=3000, every=1000)
    process = place.begin()
    place.until_step(100)
    mine = [{"CidrIp": "198.51.100.7/32", "Description": "somebody else's"}]
    console = place.cloud.client()
    group = place.cloud.group()
    rule = {"IpProtocol": "tcp", "FromPort": place.cloud.port, "ToPort": place.cloud.port, "IpRanges": mine}
    console.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[rule])
    place.cloud.caller = "127.0.0.77"
    place.cloud.drop_sessions(place.cloud.machine())
    wait_until(lambda: place.cloud.open_to() == {"127.0.0.77/32", "198.51.100.7/32"}, 60, 0.2)
    assert process.wait(720) == 0, place.words()
    place.check()


def test_the_login_expires_while_it_trains(rent: Callable[..., Ec2Place]) -> None:
    """No verdict, no release, nothing lost: the release waits, and the next login ends it."""
    place = rent("EC2 credentials expired mid-run", steps=1500, every=500)
    process = place.begin()
    place.until_step(50)
    place.cloud.inject("*", "ExpiredToken", text="the security token is expired", times=10_000)
    wait_until(lambda: "ExpiredToken" in place.words(), 120, 0.2)
    assert process.poll() is None and len(place.cloud.living()) == 1
    place.cloud.faults.clear()
    assert process.wait(720) == 0, place.words()
    place.check()


def test_killed_at_every_write_of_a_whole_run(rent: Callable[..., Ec2Place]) -> None:
    place = rent("EC2 F3 CLI killed at every ledger write")
    kills, at = 0, 3
    command: tuple[str, ...] = ("run", "tiny.toml", "--host", "cloud", "--yes")
    while (done := place.crash(at, WHEN[kills % 2], *command)).returncode == -9:
        kills, at = kills + 1, at + 1
        if (place.home / "ledger.db").exists() and json.loads(place.cloud.gptctl("status", "--json").stdout)["runs"]:
            command = ("resume",)
    assert done.returncode == 0, done.stderr
    assert kills > 20
    place.check()


def test_killed_at_every_call_of_acquire(rent: Callable[..., Ec2Place], capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL before each call to AWS has its effect, and after it, before the answer is read."""
    place = rent("EC2 SIGKILL at every call of acquire")
    calls = ["GetParameter", "DescribeImages", "DescribeSubnets", "DescribeKeyPairs", "ImportKeyPair",
             "CreateSecurityGroup", "AuthorizeSecurityGroupIngress", "RunInstances", "DescribeInstances"]  # fmt: skip
    kills = 0
    for call in calls:
        for when in WHEN:
            kills += _killed_at(place, call, when)
            released = place.cloud.gptctl("release", "--force", "--yes")
            assert released.returncode in (0, 3), (call, when, released.stderr)
            assert place.cloud.living() == [], (call, when)
    assert kills >= 2 * len(calls) - 2
    with capsys.disabled():
        most = place.cloud.buys_per_token()
        print(f"\n{kills} kills, {len(place.cloud.books)} machines bought, at most {most} per intent, 0 left")
    place.check(outcome=None)


def _killed_at(place: Ec2Place, call: str, when: str) -> bool:
    process = place.begin()

    def kill(action: str, moment: str) -> None:
        if (action, moment) == (call, when):
            place.cloud.on_call = lambda *_: None
            process.kill()
            process.wait()

    place.cloud.on_call = kill
    try:
        wait_until(lambda: process.poll() is not None, 120, 0.02)
    finally:
        place.cloud.on_call = lambda *_: None
    return process.returncode == -9


def test_a_machine_that_is_left_alone_powers_itself_off(rent: Callable[..., Ec2Place]) -> None:
    place = rent("F32 on EC2: left alone, it powers itself off and is gone", more='guard = "self"')
    drill = place.cloud.gptctl("check", "cloud", "--drill", "--lease-s", "20", "--yes")
    assert drill.returncode == 0, drill.stderr + drill.stdout
    assert "ended on its own" in drill.stdout + drill.stderr, "the order to end it came after it had ended"
    place.check(outcome=None)
