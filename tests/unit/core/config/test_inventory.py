"""Inventories: host local, what is refused, and that no secret is taken or shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.core.config.inventory import HostSpec, Inventory, load_inventory
from orchestrator.core.errors import UserError
from tests.support.files.repository import REPOSITORY

BOX = '[hosts.box]\nmachine = "1x3090"\naddress = "192.168.1.20"\n'


def load(folder: Path, text: str) -> Inventory:
    path = folder / "inventory.toml"
    path.write_text(text)
    return load_inventory(path, home=folder / "home")


def refused(folder: Path, text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load(folder, text)
    return caught.value


def test_local_is_always_there_and_its_machine_is_detected_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    host = load_inventory(None, home=tmp_path).host("local")
    assert (host.provider, host.machine, host.price_per_hour_usd, host.paid) == ("local", None, None, False)
    assert host.reach().host is None


def test_local_may_get_a_price(tmp_path: Path) -> None:
    host = load(tmp_path, "[hosts.local]\nprice_per_hour_usd = 0.11\n").host("local")
    assert (host.provider, host.price_per_hour_usd) == ("local", 0.11)


def test_the_working_folder_comes_before_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder, name in ((home, "of-home"), (here, "of-here")):
        folder.mkdir()
        (folder / "inventory.toml").write_text(f'[hosts.{name}]\nmachine = "1x3090"\n')
    monkeypatch.chdir(here)
    assert set(load_inventory(None, home).hosts) == {"of-here", "local"}
    monkeypatch.chdir(tmp_path)
    assert set(load_inventory(None, home).hosts) == {"of-home", "local"}


def test_the_design_example_loads(tmp_path: Path) -> None:
    text = """
    [hosts.home-3090]
    provider = "ssh"
    machine = "1x3090"
    address = "192.168.1.20"
    port = 2222
    user = "me"
    ssh_key = "~/.ssh/home"
    price_per_hour_usd = 0.11
    python = "/usr/bin/python3"
    """
    address = load(tmp_path, text).host("home-3090").reach()
    assert (address.host, address.port, address.user) == ("192.168.1.20", 2222, "me")
    assert address.identity == "[192.168.1.20]:2222"
    assert address.key_file == str(Path("~/.ssh/home").expanduser())


def test_it_survives_the_ledger(tmp_path: Path) -> None:
    host = load(tmp_path, BOX + 'regions = ["us-west-2"]\n').host("box")
    assert HostSpec.from_resolved(json.loads(json.dumps(host.resolved()))) == host


def test_the_bundled_inventory_loads_with_every_example_switched_on(tmp_path: Path) -> None:
    text = (REPOSITORY / "inventory.toml").read_text()
    live = re.sub(r"^# (\[hosts\.|\w+ = )", r"\1", text, flags=re.MULTILINE)
    hosts = load(tmp_path, live.replace('"SHA256:..."', f'"SHA256:{"a" * 43}"')).hosts
    assert {"local", "home-3090", "colleagues-8x4090", "rehearsal-8xa100", "lambda-8xa100", "aws-8xa100"} == set(hosts)
    assert set(load(tmp_path, text).hosts) == {"local", "rehearsal-8xa100"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pyhton = 'x'", "pyhton: unknown key (did you mean python?)"),
        ("price_per_hour_usd = -1", "price_per_hour_usd"),
        ("price_per_hour_usd = 1e9", "price_per_hour_usd"),
        ("price_per_hour_usd = nan", "price_per_hour_usd"),
        ("max_price_per_hour_usd = 0", "max_price_per_hour_usd"),
        ("port = 70000", "port"),
        ("port = '22'", "port"),
        ("user = '-oProxyCommand=x'", "user"),
        ("user = 'a b'", "user"),
        ("fingerprint = 'MD5:aa'", "fingerprint"),
        ("guard = 'hope'", "guard"),
        ('folder = "a\\nb"', "control character"),
        ("endpoint = 'ftp://x'", "endpoint"),
        ("fetch_store = 's3://b/x'", "fetch_store: a machine of provider ssh waits for free"),
        ("fetch_store = 'ssh://attic/x'", "fetch_store"),
    ],
)
def test_a_wrong_value_is_named_with_its_host(tmp_path: Path, line: str, said: str) -> None:
    message = refused(tmp_path, BOX + line + "\n").message
    assert "hosts.box: " in message
    assert said in message


@pytest.mark.parametrize("address", ["-oProxyCommand=touch x", "a b", "a;b", "$(x)", "a\\nb", "", "me@host"])
def test_an_address_that_ssh_could_take_for_something_else_is_refused(tmp_path: Path, address: str) -> None:
    assert "address" in refused(tmp_path, f'[hosts.box]\nmachine = "1x3090"\naddress = "{address}"\n').message


@pytest.mark.parametrize("name", ["a b", "a'b", "a;b", "$(x)", "a\nb", "-x", ".."])
def test_nasty_host_names_are_refused(tmp_path: Path, name: str) -> None:
    assert "name" in refused(tmp_path, f'[hosts.{json.dumps(name)}]\nmachine = "1x3090"\n').message


def test_an_unknown_machine_lists_the_known(tmp_path: Path) -> None:
    message = refused(tmp_path, '[hosts.box]\nmachine = "8xA100"\n').message
    assert "8xA100-40GB" in message
    assert "did you mean" in message


def test_a_host_needs_its_machine(tmp_path: Path) -> None:
    assert "needs `machine`" in refused(tmp_path, '[hosts.box]\naddress = "x"\n').message


def test_an_unknown_host_lists_the_known_and_names_the_nearest(tmp_path: Path) -> None:
    inventory = load(tmp_path, BOX)
    with pytest.raises(UserError) as caught:
        inventory.host("bx")
    assert "known: box, local" in caught.value.message
    assert caught.value.hint == "did you mean box?"


@pytest.mark.parametrize("key", ["api_key", "token", "aws_secret_access_key", "password", "LAMBDA_API_KEY"])
def test_a_secret_is_refused_without_showing_it(tmp_path: Path, key: str) -> None:
    error = refused(tmp_path, f'[hosts.cloud]\nprovider = "lambda"\nmachine = "8xH100"\n{key} = "canary-5f1e"\n')
    assert "secrets do not belong" in error.message
    assert "LAMBDA_API_KEY" in error.hint
    assert "canary" not in error.message + error.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[host.box]\n", "unknown key host"),
        ("hosts = 3\n", "must be tables"),
        ("[hosts]\nbox = 3\n", "must be a table"),
        ("[hosts.box\n", "not valid TOML"),
        ("a = " + "{a = " * 100_000, "nested too deeply"),
    ],
)
def test_a_file_of_another_shape(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text).message


def test_a_named_inventory_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no inventory found at"):
        load_inventory(tmp_path / "none.toml", home=tmp_path)
