"""The lambda provider against the rehearsal cloud: real HTTP, real machines, every lie, and the cloud's own books."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import (
    AmbiguousLaunch,
    BadCredentials,
    HostKeyChanged,
    NoAnswer,
    NoCapacity,
    ProviderError,
)
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import Guard, LaunchRequest
from orchestrator.providers.lambda_cloud import api as lambda_api
from orchestrator.providers.lambda_cloud import provider
from orchestrator.providers.lambda_cloud.api import LambdaApi
from orchestrator.providers.lambda_cloud.provider import LambdaCloud
from orchestrator.remote.shell import known_hosts, ssh_shell
from orchestrator.remote.shell.key_pairs import new_key_pair
from orchestrator.stages.machine.first_contact.cloud_init import user_data
from tests.support.clock.waiting import until
from tests.support.clouds.lambda_account import RENTAL, Account
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.canary import below, content

LAUNCH = "/instance-operations/launch"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RehearsalCloud]:
    with RehearsalCloud(tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture
def cloud(shared: RehearsalCloud, gptctl_home: Path) -> Iterator[RehearsalCloud]:
    """One cloud for all these tests, in order and empty before each."""
    yield shared
    shared.ask("POST", "/rehearsal/inject", {"clear": ""})
    for instance_id in shared.statuses():
        shared.terminate(instance_id)
    until(lambda: shared.statuses() == {})


@pytest.fixture
def own_cloud(gptctl_home: Path, tmp_path: Path) -> Iterator[RehearsalCloud]:
    """For what cannot be undone: prices, somebody else's machines."""
    with RehearsalCloud(tmp_path / "cloud") as running:
        yield running


@pytest.fixture
def account(cloud: RehearsalCloud) -> Account:
    return Account(cloud)


def test_a_machine_from_purchase_to_its_end(account: Account, gptctl_home: Path) -> None:
    key = new_key_pair("rental")
    offer = next(one for one in account.provider.offers() if one.machine == "8xA100-40GB")
    request = account.request(offer=offer, user_data=user_data(key))
    instance = account.provider.acquire(request)
    assert (instance.status, instance.address, instance.price_per_hour_usd) == ("booting", None, 15.92)
    until(lambda: account.seen(instance.instance_id).address is not None)

    seen = account.seen(instance.instance_id)
    assert seen.address is not None
    assert (seen.rental_id, seen.intent_id, seen.ends_at) == (RENTAL, request.intent_id, instance.ends_at)
    assert (seen.tags, seen.machine, seen.status) == (instance.tags, "8xA100-40GB", "active")
    pins = gptctl_home / "known_hosts"
    known_hosts.pin(pins, seen.instance_id, known_hosts.HostKey(*key.public.split()[:2]))
    shell = ssh_shell.connect(seen.address, known_hosts=pins)
    assert shell.run(["echo", "hi"]).stdout == b"hi\n"
    shell.close()

    account.provider.release(seen)
    until(lambda: account.provider.machines() == [])
    row = account.cloud.row(seen.instance_id)
    assert not row["alive"]
    assert account.provider.ended_at(instance) == pytest.approx(row["terminated_at"], abs=0.001)
    assert account.bought(request) == 1


@pytest.mark.parametrize(
    ("fault", "error", "machines"),
    [
        ("no-capacity", NoCapacity, 0),
        ("listed-but-refused", NoCapacity, 0),
        ("quota", ProviderError, 0),
        ("key-revoked@launch", BadCredentials, 0),
        ("429@launch", AmbiguousLaunch, 0),
        ("500@launch", AmbiguousLaunch, 0),
        ("redirect@launch", AmbiguousLaunch, 0),
        ("unknown-error-code", AmbiguousLaunch, 0),
        ("timeout-before-effect", AmbiguousLaunch, 0),
        ("empty-ids@nothing", AmbiguousLaunch, 0),
        ("timeout-after-effect", AmbiguousLaunch, 1),
        ("500-after-effect", AmbiguousLaunch, 1),
        ("empty-ids", AmbiguousLaunch, 1),
        ("broken-body@launch", AmbiguousLaunch, 1),
        ("wrong-types@launch", AmbiguousLaunch, 1),
        ("giant-answer@launch", AmbiguousLaunch, 1),
    ],
)
def test_a_launch_is_asked_for_once_whatever_the_answer(
    account: Account, fault: str, error: type[ProviderError], machines: int
) -> None:
    account.cloud.inject(fault)
    request = account.request()
    with pytest.raises(ProviderError) as caught:
        account.provider.acquire(request)
    assert type(caught.value) is error
    assert account.fired() == [fault.partition("@")[0]]
    assert len(account.asked(LAUNCH)) == 1
    assert account.bought(request) == machines
    assert [one.intent_id for one in account.provider.machines()] == [request.intent_id] * machines
    assert account.cloud.key not in f"{caught.value} {caught.value.hint}"


def test_an_api_that_is_out_of_reach_was_not_asked_for_anything(account: Account) -> None:
    account.provider.acquire(account.request())  # registers the login key
    account.cloud.program("--stop")
    with pytest.raises(NoAnswer) as caught:
        account.web.once("POST", LAUNCH, body={})
    assert not caught.value.sent
    account.cloud.start()
    assert len(account.provider.machines()) == 1


@pytest.mark.parametrize("order", [{"sku": ""}, {"region": ""}, {"region": "mars-1"}, {"sku": "gpu_9x_b300"}])
def test_an_offer_that_cannot_be_is_refused(account: Account, order: dict[str, str]) -> None:
    request = account.request(offer=account.offer(**order))
    with pytest.raises(ProviderError) as caught:
        account.provider.acquire(request)
    assert not isinstance(caught.value, AmbiguousLaunch)
    assert account.bought(request) == 0


@pytest.mark.parametrize(
    "fault",
    ["429@list", "500@list*2", "timeout-before-effect@list", "broken-body", "wrong-types", "giant-answer",
     "redirect@list", "unknown-error-code@list", "500-after-effect@list"],
)  # fmt: skip
def test_a_list_is_asked_for_again_until_it_can_be_read(account: Account, fault: str) -> None:
    bought = account.provider.acquire(account.request())
    account.cloud.inject(fault)
    assert [one.instance_id for one in account.provider.machines()] == [bought.instance_id]
    assert account.fired()


@pytest.mark.parametrize("fault", ["500@types", "broken-body@types", "wrong-types@types", "redirect@types"])
def test_prices_are_given_up_at_the_deadline(account: Account, fault: str) -> None:
    account.cloud.inject(f"{fault}*forever")
    with pytest.raises(NoAnswer) as caught:
        account.provider.offers(deadline_s=1.0)
    assert account.cloud.key not in str(caught.value)
    assert len(account.asked("/instance-types")) >= 2


@pytest.mark.parametrize("percent", [0, -50, 100_000])
def test_an_absurd_price_is_refused(own_cloud: RehearsalCloud, percent: int) -> None:
    account = Account(own_cloud)
    account.cloud.inject(f"price-change@{percent}")
    assert account.provider.offers()
    with pytest.raises(ProviderError, match=r"gpu_8x_a100 for .* USD per hour: refused"):
        account.provider.offers()


def test_offers_follow_the_host_entrys_regions_and_say_where_nothing_is_left(cloud: RehearsalCloud) -> None:
    account = Account(cloud, regions=("us-east-1", "us-west-1", "asia-1"))
    of_ours = [one for one in account.provider.offers() if one.machine == "8xA100-40GB"]
    assert [(one.region, one.disk_gib) for one in of_ours] == [("us-east-1", 6144), ("us-west-1", 6144)]
    cloud.inject("sold-out@us-east-1,sold-out@us-west-1*forever")
    of_ours = [one for one in account.provider.offers() if one.machine == "8xA100-40GB"]
    assert [one.region for one in of_ours] == ["us-west-1"]
    of_ours = [one for one in Account(cloud, regions=("us-west-1",)).provider.offers() if one.machine == "8xA100-40GB"]
    assert [(one.region, one.available) for one in of_ours] == [("", False)]


def test_instance_types_get_our_names_by_their_cards(account: Account) -> None:
    names = {one.sku: one.machine for one in account.provider.offers()}
    assert names == {
        "gpu_1x_a10": "gpu_1x_a10",
        "gpu_1x_h100_sxm5": "1xH100",
        "gpu_8x_a100": "8xA100-40GB",
        "gpu_8x_a100_80gb_sxm4": "8xA100-80GB",
        "gpu_8x_h100_sxm5": "8xH100",
    }


def test_foreign_machines_are_neither_shown_nor_touched(own_cloud: RehearsalCloud) -> None:
    account = Account(own_cloud)
    account.cloud.inject("decoys@3")
    ours = account.up()
    assert [one.instance_id for one in account.provider.machines()] == [ours.instance_id]
    foreign = [row["id"] for row in account.cloud.books()["instances"] if row["foreign"]]
    for instance_id in foreign:
        decoy = replace(ours, instance_id=instance_id)
        with pytest.raises(ProviderError, match="left alone"):
            account.provider.release(decoy)
    with pytest.raises(ProviderError, match="left alone"):
        account.provider.release(replace(ours, rental_id="somebody-elses"))
    assert [row["alive"] for row in account.cloud.books()["instances"]] == [True] * 4
    assert account.asked("/terminate") == []


@pytest.mark.parametrize(
    "fault",
    ["terminate-500*2", "429@terminate", "timeout-before-effect@terminate", "timeout-after-effect@terminate",
     "terminate-ignored@unlisted", "500@get*forever", "broken-body@get*forever", "broken-body@terminate"],
)  # fmt: skip
def test_the_end_is_asked_for_until_it_is_accepted(
    account: Account, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = account.up()
    if "get" in fault:  # looking first may fail for as long as it likes
        monkeypatch.setattr(lambda_api, "READ_DEADLINE_S", 1.0)
    account.cloud.inject(fault)
    account.provider.release(instance)
    assert not account.cloud.row(instance.instance_id)["alive"]
    account.cloud.ask("POST", "/rehearsal/inject", {"clear": ""})
    until(lambda: account.provider.machines() == [])
    account.provider.release(instance)  # object-does-not-exist, and no list has it
    assert account.fired()


def test_an_accepted_end_is_no_proof(account: Account) -> None:
    instance = account.up()
    account.cloud.inject("terminate-ignored")
    account.provider.release(instance)
    assert [one.status for one in account.provider.machines()] == ["active"]
    assert account.provider.ended_at(instance) is None
    account.provider.release(instance)
    assert not account.cloud.row(instance.instance_id)["alive"]


def test_a_key_that_was_revoked_is_said_at_once_and_shown_nowhere(account: Account) -> None:
    instance = account.up()
    account.cloud.inject("key-revoked")
    attempts = [
        account.provider.offers,
        account.provider.machines,
        lambda: account.provider.acquire(account.request()),
        lambda: account.provider.release(instance),
        lambda: account.provider.set_deadline(instance, 2e9),
    ]
    for attempt in attempts:
        with pytest.raises(BadCredentials) as caught:
            attempt()
        assert "LAMBDA_API_KEY" in caught.value.hint
        assert account.cloud.key not in f"{caught.value!r} {caught.value.hint}"
    assert account.provider.ended_at(instance) is None
    assert account.cloud.row(instance.instance_id)["alive"]


@pytest.mark.parametrize("fault", ["", "rename-ignored", "list-lag@1*3", "500@rename", "timeout-after-effect@rename"])
def test_a_deadline_is_set_when_a_list_shows_it(account: Account, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "LOOK_EVERY_S", 0.05)
    instance = account.up()
    account.cloud.inject(fault)
    account.provider.set_deadline(instance, 1_900_000_000.7)
    seen = account.seen(instance.instance_id)
    assert (seen.name, seen.ends_at) == (f"gptctl-{RENTAL}-until-1900000000", 1_900_000_000.0)
    assert account.provider.guard(seen) == Guard("watcher", True, 1_900_000_000.0)
    assert seen.tags == instance.tags


def test_a_deadline_no_list_shows_is_not_set(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(provider, "SEEN_WITHIN_S", 0.3)
    instance = account.up()
    account.cloud.inject("rename-ignored*forever")
    with pytest.raises(NoAnswer, match="lists do not show it"):
        account.provider.set_deadline(instance, 1_900_000_000)
    assert account.seen(instance.instance_id).ends_at == instance.ends_at


def test_a_foreign_name_leaves_the_tags_deadline(account: Account) -> None:
    instance = account.up(ends_at=1_900_000_000.0)
    account.cloud.post(f"instances/{instance.instance_id}", {"name": "renamed by hand"})
    assert account.seen(instance.instance_id).ends_at == 1_900_000_000.0


def test_active_is_not_yet_reachable(account: Account) -> None:
    account.cloud.inject("active-without-ip@1")
    instance = account.provider.acquire(account.request())
    until(lambda: account.seen(instance.instance_id).status == "active")
    assert account.seen(instance.instance_id).address is None
    until(lambda: account.seen(instance.instance_id).address is not None)


def test_a_machine_that_was_taken_away_says_so_for_good(own_cloud: RehearsalCloud) -> None:
    account = Account(own_cloud)
    instance = account.up()
    metrics = account.cloud.home(instance.instance_id) / ".gptctl/runs/r/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"step": 5}\n')
    account.cloud.inject("preempt@5")
    until(lambda: account.seen(instance.instance_id).status == "preempted")
    account.provider.release(instance)
    assert account.asked("/terminate") == []
    row = account.cloud.row(instance.instance_id)
    assert account.provider.ended_at(instance) == pytest.approx(row["terminated_at"], abs=0.001)


def test_an_image_that_ignores_the_injected_key_is_noticed_before_anything_is_sent(
    account: Account, gptctl_home: Path
) -> None:
    account.cloud.inject("host-key-ignored")
    key = new_key_pair("rental")
    seen = account.up(user_data=user_data(key))
    assert seen.address is not None
    known_hosts.pin(gptctl_home / "known_hosts", seen.instance_id, known_hosts.HostKey(*key.public.split()[:2]))
    with pytest.raises(HostKeyChanged):
        ssh_shell.connect(seen.address, known_hosts=gptctl_home / "known_hosts")


def test_an_unhealthy_machine_says_so_and_can_be_given_back(account: Account) -> None:
    account.cloud.inject("unhealthy")
    instance = account.provider.acquire(account.request())
    until(lambda: account.seen(instance.instance_id).status == "unhealthy")
    account.provider.release(instance)
    assert account.cloud.books()["alive"] == []


def test_the_login_key_is_registered_once_by_its_content(account: Account) -> None:
    for _ in range(2):
        account.provider.acquire(account.request())
    posts = [one for one in account.exchanges if (one.method, one.path) == ("POST", "/ssh-keys")]
    assert len(posts) == 1
    account.cloud.inject("timeout-after-effect@keys")
    other = Account(account.cloud, ssh_key=str(account.cloud.make_key("other")))
    other.provider.acquire(other.request())
    names = [key["name"] for key in account.cloud.get("ssh-keys")]
    assert len(names) == len(set(names)) >= 3


def test_a_login_key_that_another_gptctl_registers_at_the_same_moment_is_used(
    cloud: RehearsalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = LambdaApi.add_ssh_key

    def both(api: LambdaApi, name: str, public_key: str) -> None:
        for _ in range(2):
            register(api, name, public_key)

    monkeypatch.setattr(LambdaApi, "add_ssh_key", both)
    account = Account(cloud, ssh_key=str(cloud.make_key("shared")))
    assert account.provider.acquire(account.request()).instance_id


def test_a_key_that_is_there_under_another_name_is_used(cloud: RehearsalCloud) -> None:
    account = Account(cloud, ssh_key=str(cloud.user_key))
    account.provider.acquire(account.request())
    assert next(one for one in account.exchanges if one.path == LAUNCH).body["ssh_key_names"] == ["me"]
    assert [one for one in account.exchanges if (one.method, one.path) == ("POST", "/ssh-keys")] == []


@pytest.mark.parametrize("image", [{"family": "lambda-stack-22-04"}, {"id": f"{0xA1:032x}"}])
def test_an_image_is_asked_for_by_family_or_id(cloud: RehearsalCloud, image: dict[str, str]) -> None:
    account = Account(cloud, image=next(iter(image.values())))
    account.provider.acquire(account.request())
    assert next(one for one in account.exchanges if one.path == LAUNCH).body["image"] == image


def test_an_image_that_is_not_there_is_said_before_buying(cloud: RehearsalCloud) -> None:
    account = Account(cloud, image="lambda-stack-99")
    with pytest.raises(ProviderError, match="lambda-stack-99") as caught:
        account.provider.acquire(account.request())
    assert "lambda-stack-22-04" in caught.value.hint
    assert account.asked(LAUNCH) == []


def test_the_jupyter_login_in_every_list_goes_nowhere(
    account: Account, gptctl_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = account.up()
    token = account.cloud.get(f"instances/{instance.instance_id}")["jupyter_token"]
    monkeypatch.setattr(lambda_api, "READ_DEADLINE_S", 0.3)
    account.cloud.inject("wrong-types*forever")
    with pytest.raises(NoAnswer) as caught:
        account.provider.machines()
    written = b"".join(content(file) for file in below(gptctl_home))
    said = repr(instance) + repr(caught.value) + caught.value.hint + repr(account.web)
    assert token not in said + written.decode(errors="replace")
    assert account.cloud.key not in said + written.decode(errors="replace")


def test_without_a_key_it_says_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    host = HostSpec(name="box", provider="lambda", machine="8xH100")
    with pytest.raises(BadCredentials, match="LAMBDA_API_KEY is not set"):
        provider.provider(host, machine_type("8xH100")).offers()


def test_the_host_entrys_endpoint_user_and_port_are_kept(
    cloud: RehearsalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    Account(cloud).up()
    monkeypatch.setenv("LAMBDA_API_KEY", cloud.key)
    fields = {"provider": "lambda", "machine": "8xA100-40GB", "endpoint": cloud.entry["url"]}
    for user, port in (("ubuntu", 22), ("me", 2200)):
        own = {} if user == "ubuntu" else {"user": user, "port": port}
        made = provider.provider(HostSpec(name="box", **fields, **own), machine_type("8xA100-40GB"))
        (seen,) = made.machines()
        assert seen.address is not None
        assert (seen.address.user, seen.address.port) == (user, port)
        assert seen.address.identity == seen.instance_id


def test_processes_share_one_pace(cloud: RehearsalCloud, gptctl_home: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from orchestrator.providers.lambda_cloud.provider import open_api
        api = open_api("Lambda Cloud", sys.argv[1], sys.argv[2], {"request": 0.3})
        for _ in range(4):
            api.machines(lambda row: True)
    """)
    command = [sys.executable, "-c", script, cloud.entry["url"], cloud.key]
    before = len(cloud.requests("/instances"))
    running = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    started = [one["started"] for one in cloud.requests("/instances")[before:]]
    assert len(started) == 8
    assert min(later - earlier for earlier, later in pairwise(started)) >= 0.3


def test_lambdas_own_limits_are_never_hit(gptctl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RehearsalCloud(tmp_path / "cloud", "--strict-rate") as cloud:
        time.sleep(1.0)  # the fixture's own request
        monkeypatch.setenv("LAMBDA_API_KEY", cloud.key)
        host = HostSpec(name="box", provider="lambda", machine="8xA100-40GB", endpoint=cloud.entry["url"])
        made = provider.provider(host, machine_type("8xA100-40GB"))
        offer = next(one for one in made.offers() if one.machine == "8xA100-40GB")
        made.acquire(LaunchRequest(RENTAL, "intent", offer))
        made.machines()
        lines = [json.loads(line) for line in (cloud.state / "requests.jsonl").read_text().splitlines()]
        assert [one["status"] for one in lines if one["status"] != 200] == []


def test_nobody_listens(gptctl_home: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = provider.open_api("Lambda Cloud", f"http://127.0.0.1:{port}", "key", {})
    made = LambdaCloud("lambda", HostSpec(name="b", provider="lambda", machine="8xH100"), machine_type("8xH100"),
                       lambda: api)  # fmt: skip
    with pytest.raises(NoAnswer, match="no answer to GET /instance-types"):
        made.offers(deadline_s=0.5)


def test_file_systems_are_attached_in_their_region_only(cloud: RehearsalCloud) -> None:
    account = Account(cloud, file_systems=("datasets",))
    offered = [offer for offer in account.provider.offers() if offer.machine == "8xA100-40GB"]
    assert {offer.region for offer in offered if offer.available} == {"us-east-1"}
    bought = account.provider.acquire(account.request(offer=account.offer(region="us-east-1")))
    account.seen(bought.instance_id)
    (shown,) = [one for one in account.exchanges[-1].answer["data"] if one["id"] == bought.instance_id]
    assert shown["file_system_names"] == ["datasets"]
    account.provider.release(bought)
    with pytest.raises(ProviderError, match="wrong-region"):
        account.provider.acquire(account.request())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("no-such",), "no file system 'no-such'"),
        (("datasets", "foreign-files"), "lie in us-east-1, us-west-1"),
    ],
)
def test_file_systems_that_cannot_be_attached_are_refused_before_anything_is_bought(
    cloud: RehearsalCloud, names: tuple[str, ...], said: str
) -> None:
    account = Account(cloud, file_systems=names)
    with pytest.raises(ProviderError, match=said):
        account.provider.offers()


def test_an_id_is_asked_for_without_any_list(account: Account) -> None:
    instance = account.up()
    assert account.provider.find(instance.instance_id) == "alive"
    assert account.provider.find("0" * 32) == "unknown"
    assert account.provider.release(instance)
    assert account.provider.find(instance.instance_id) in ("terminating", "gone", "unknown")
    until(lambda: account.provider.machines() == [])
    assert not account.provider.release(instance)
    account.cloud.inject("500@get*forever")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lambda_api, "READ_DEADLINE_S", 0.5)
        with pytest.raises(NoAnswer):
            account.provider.find(instance.instance_id)
