"""Names, tags, keys and user data of a launch, whatever the rental is called: within the API's limits, and readable."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import UserError
from orchestrator.core.fleet.machine_names import NAME, machine_name
from orchestrator.core.machines import machine_type
from orchestrator.core.ports import Instance, LaunchRequest, Offer
from orchestrator.ledger.identity import new_rental_id
from orchestrator.providers.lambda_cloud import provider
from orchestrator.providers.lambda_cloud.api import LambdaApi
from orchestrator.providers.lambda_cloud.provider import LambdaCloud
from orchestrator.providers.lambda_cloud.rows import SshKey
from orchestrator.remote.shell.key_pairs import login_key_file, login_public_key, new_key_pair
from orchestrator.stages.machine.first_contact.cloud_init import user_data
from tests.support.clouds.lambda_schemas import LAUNCH, Draft202012Validator

RENTALS = st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True)
PUBLIC = "ssh-ed25519 AAAA"
EPOCHS = st.floats(min_value=1e9, max_value=9_999_999_999)


@given(rental=RENTALS, ends_at=EPOCHS)
def test_every_name_fits_and_can_be_read_back(rental: str, ends_at: float) -> None:
    name = machine_name(rental, ends_at)
    assert len(name) <= 64
    found = NAME.fullmatch(name)
    assert found
    assert (found["rental"], int(found["epoch"])) == (rental, int(ends_at))


@given(st.text(max_size=64))
def test_no_other_name_has_a_deadline(name: str) -> None:
    found = NAME.fullmatch(name)
    assert not found or name == machine_name(found["rental"], float(found["epoch"]))


@given(rental=RENTALS, intent=st.uuids(), ends_at=EPOCHS, nearer=st.none() | EPOCHS)
def test_every_order_is_valid(rental: str, intent: object, ends_at: float, nearer: float | None) -> None:
    host = HostSpec(name="box", provider="lambda", machine="8xA100-40GB")
    api = cast(LambdaApi, SimpleNamespace(ssh_keys=lambda: [SshKey(name="k", public_key=PUBLIC)]))
    cloud = LambdaCloud("lambda", host, machine_type("8xA100-40GB"), lambda: api)
    offer = Offer("lambda", "8xA100-40GB", 15.92, "gpu_8x_a100", "us-west-1")
    request = LaunchRequest(rental, str(intent), offer, ends_at, {"gptctl-run": "r"}, nearer, "#cloud-config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provider, "login_public_key", lambda home, ssh_key: PUBLIC)
        order = cloud._order(request)
    Draft202012Validator(LAUNCH).validate(order)
    tags = {tag["key"]: tag["value"] for tag in order["tags"]}
    assert tags["gptctl-ends-at"] == str(int(ends_at))
    assert (tags["gptctl-rental"], tags["gptctl-intent"]) == (rental, str(intent))
    assert order["name"].endswith(f"-{int(ends_at if nearer is None else nearer)}")


def test_a_rental_of_ours_fits() -> None:
    assert len(machine_name(new_rental_id("8xA100-40GB-simulated", 1_795_000_000), 1_795_000_000)) <= 64


@pytest.mark.parametrize(
    ("guard", "ends_at", "armed"),
    [("watcher", 5.0, True), ("watcher", None, False), ("key-on-box", 5.0, False), ("none", 5.0, False)],
)
def test_the_guard_is_what_can_be_seen_from_here(guard: str, ends_at: float | None, armed: bool) -> None:
    host = HostSpec.from_resolved({"name": "b", "provider": "lambda", "machine": "8xH100", "guard": guard})
    made = provider.provider(host, machine_type("8xH100"))
    seen = made.guard(Instance("lambda", "i", "8xH100", ends_at=ends_at))
    assert (seen.kind, seen.armed, seen.ends_at) == (guard, armed, ends_at)


def test_user_data_carries_the_pair_and_shows_it_nowhere() -> None:
    pair = new_key_pair("rental")
    text = user_data(pair)
    header, _, body = text.partition("\n")
    assert header == "#cloud-config"
    keys = json.loads(body)["ssh_keys"]
    assert keys == {"ed25519_private": pair.private, "ed25519_public": pair.public}
    request = LaunchRequest("r", "i", Offer("lambda", "m", 1.0), user_data=text)
    assert pair.private.splitlines()[1] not in repr(pair) + repr(request)


def test_a_new_pair_is_one_that_openssh_reads(tmp_path: Path) -> None:
    pair = new_key_pair("rental")
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text(pair.private)
    told = subprocess.run(["ssh-keygen", "-y", "-f", str(file)], capture_output=True, text=True, check=True).stdout
    assert told.split()[:2] == pair.public.split()[:2]
    assert pair.public != new_key_pair("rental").public


def test_our_own_login_key_is_made_once(tmp_path: Path) -> None:
    public = login_public_key(tmp_path, None)
    file = login_key_file(tmp_path, None)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert login_public_key(tmp_path, None) == public
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_the_users_key_is_read_with_or_without_its_public_half(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(file)], check=True)
    beside = login_public_key(tmp_path, str(file))
    file.with_name("id.pub").unlink()
    assert login_public_key(tmp_path, str(file)) == beside


@pytest.mark.parametrize("trouble", ["absent", "encrypted", "nonsense", "empty public half"])
def test_a_key_that_cannot_be_read_is_named(tmp_path: Path, trouble: str) -> None:
    file = tmp_path / "id"
    if trouble == "encrypted":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(file)], check=True)
        file.with_name("id.pub").unlink()
    elif trouble == "nonsense":
        file.write_text("not a key")
    elif trouble == "empty public half":
        file.with_name("id.pub").write_text("")
    with pytest.raises(UserError, match=str(file)):
        login_public_key(tmp_path, str(file))
