"""What ~/.ssh/config may say about a machine, and the ssh command line that follows from it."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.core.errors import Unreachable, UserError
from orchestrator.core.ports import Address
from orchestrator.remote.shell import ssh_endpoint
from orchestrator.remote.shell.ssh_endpoint import Endpoint, openssh_argv, resolve


@pytest.fixture
def config(gptctl_home: Path) -> Path:
    """An empty ~/.ssh/config of the test's own HOME, with one key beside it."""
    folder = Path.home() / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "home").write_text("a key")
    (folder / "config").touch()
    return folder / "config"


def address(host: str, **fields: object) -> Address:
    return Address(host=host, identity=f"[{host}]:22", **fields)  # type: ignore[arg-type]


def test_the_config_fills_in_what_the_inventory_leaves_open(config: Path) -> None:
    config.write_text("Host nick\n  HostName 10.0.0.9\n  Port 2022\n  User me\n  IdentityFile ~/.ssh/home\n")
    found = resolve(address("nick"))
    assert (found.host, found.port, found.user, found.identity) == ("10.0.0.9", 2022, "me", "[nick]:22")
    assert found.key_files == (str(config.parent / "home"),)
    assert found.vouched_names == ("[10.0.0.9]:2022", "[nick]:2022")


def test_the_inventory_wins_over_the_config(config: Path, tmp_path: Path) -> None:
    key = tmp_path / "other"
    key.write_text("a key")
    config.write_text("Host *\n  Port 2022\n  User me\n  IdentityFile ~/.ssh/home\n")
    found = resolve(address("box", port=22, user="you", key_file=str(key)))
    assert (found.port, found.user, found.key_files, found.only_these_keys) == (22, "you", (str(key),), True)
    assert found.vouched_names == ("box",)


def test_jumps_chain_from_the_outside_in(config: Path) -> None:
    config.write_text("Host inner\n  ProxyJump me@outer:2001,[::1]:2002\nHost outer\n  ProxyJump far\n")
    found = resolve(address("inner"))
    near = found.jump
    assert near is not None and near.jump is not None and near.jump.jump is not None
    assert (near.host, near.port) == ("::1", 2002)
    assert (near.jump.host, near.jump.port, near.jump.user, near.jump.identity) == ("outer", 2001, "me", "[outer]:2001")
    assert near.jump.jump.host == "far"


def test_a_circle_of_jumps_is_named(config: Path) -> None:
    config.write_text("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(UserError, match="leads back to itself"):
        resolve(address("a"))


def test_a_broken_config_is_the_users_error(config: Path) -> None:
    config.write_text("Host *\n  Nonsense yes\n")
    with pytest.raises(UserError, match=r"(?i)nonsense"):
        resolve(address("a"))


def test_a_config_that_hangs_is_named_and_is_no_verdict(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_endpoint, "OWN_PROGRAM_S", 0.2)
    config.write_text('Match exec "sleep 5"\n  User me\n')
    with pytest.raises(Unreachable, match="did not end within"):
        resolve(address("box"))


def test_the_command_line_decides_everything_itself() -> None:
    endpoint = Endpoint("10.0.0.9", 2022, "me", "i-0ABC", ("/k/one",), only_these_keys=True)
    argv = openssh_argv(endpoint, Path("/state/with space/100%/known_hosts"))
    options = dict(value.split("=", 1) for flag, value in pairwise(argv) if flag == "-o")
    assert argv[:3] == ["ssh", "-F", "none"]
    assert argv[-1] == "me@10.0.0.9"
    assert options["UserKnownHostsFile"] == '"/state/with space/100%%/known_hosts"'
    assert (options["HostKeyAlias"], options["StrictHostKeyChecking"]) == ("i-0abc", "yes")
    assert (options["ForwardAgent"], options["IdentitiesOnly"], options["BatchMode"]) == ("no", "yes", "yes")


def test_a_jump_becomes_a_proxy_command_with_the_same_pins() -> None:
    outer = Endpoint("gate", 22, "me", "[gate]:22")
    argv = openssh_argv(Endpoint("::1", 2022, "you", "inner", jump=outer), Path("/a b/known_hosts"))
    (proxy,) = [value.removeprefix("ProxyCommand=") for value in argv if value.startswith("ProxyCommand=")]
    inside = shlex.split(proxy.replace("%%", "%"))
    assert inside[-3:] == ["-W", "[::1]:2022", "me@gate"]
    assert "StrictHostKeyChecking=yes" in inside and 'UserKnownHostsFile="/a b/known_hosts"' in inside


def test_a_proxy_command_is_filled_in_as_ssh_does_it(config: Path) -> None:
    config.write_text("Host rig\n  HostName 10.0.0.9\n  User me\n  ProxyCommand nc --from=%n --as=%r 100%% %h %p\n")
    assert resolve(address("rig")).proxy_command == "nc --from=rig --as=me 100% 10.0.0.9 22"


@pytest.mark.parametrize("token", ["%C", "%d", "%k", "%L"])
def test_a_token_of_a_proxy_command_that_gptctl_does_not_fill_in_is_named(config: Path, token: str) -> None:
    config.write_text(f"Host rig\n  ProxyCommand nc {token} %h %p\n")
    with pytest.raises(UserError, match=f"has {token}, which gptctl does not fill in"):
        resolve(address("rig"))
