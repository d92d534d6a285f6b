"""Where a connection really goes: the user's ~/.ssh/config applied to an Address, and the `ssh` argv for bulk transfer.

`ssh -G` does the reading, so aliases, Include and Match mean here exactly what they mean to ssh. Only what is listed in
Endpoint is taken over: agent forwarding and local commands never are. Nothing here connects.

    endpoint = resolve(Address(host="box", identity="[box]:22"))     # Host box in ~/.ssh/config: port 2222, user me
    openssh_argv(endpoint, known_hosts)                              # ["ssh", "-F", "none", ..., "me@192.168.1.20"]
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.core.errors import Unreachable, UserError
from orchestrator.core.ports import Address
from orchestrator.remote.shell.known_hosts import OWN_PROGRAM_S

SILENCE_S = 2
"""Seconds of silence after which either side is asked; twice unanswered means the link is lost (measured: 6 s)."""

MAX_JUMPS = 8


@dataclass(frozen=True)
class Endpoint:
    """An Address after ~/.ssh/config: a name or number to dial, and the machine to dial it from."""

    host: str
    port: int
    user: str
    identity: str
    key_files: tuple[str, ...] = ()
    only_these_keys: bool = False
    vouched_names: tuple[str, ...] = ()
    """What the user's own known_hosts may call this machine."""
    jump: Endpoint | None = None
    proxy_command: str | None = None
    """What ~/.ssh/config runs on this computer to reach it, with its %h, %p, %r and %n filled in."""

    def __str__(self) -> str:
        return f"{self.user}@{self.host} port {self.port}"


def resolve(address: Address) -> Endpoint:
    """Apply ~/.ssh/config. Errors: UserError for a host that ssh would read as an option, or does not accept."""
    if address.host is None:
        raise UserError("this address has no host: it is this machine", hint="use LocalShell for it")
    endpoint, jumps = _look_up(address.host, port=address.port, user=address.user, key_file=address.key_file)
    return replace(endpoint, identity=address.identity, jump=_chain(jumps))


def openssh_argv(endpoint: Endpoint, known_hosts: Path) -> list[str]:
    """`ssh` with every choice spelled out and no config file, so that it reaches the very machine Fabric reached."""
    argv = ["ssh", *_options(endpoint, known_hosts)]
    if endpoint.jump is not None:
        outer = openssh_argv(endpoint.jump, known_hosts)
        through = [*outer[:-1], "-W", f"[{endpoint.host}]:{endpoint.port}", outer[-1]]
        argv += ["-o", "ProxyCommand=" + shlex.join(through).replace("%", "%%")]
    return [*argv, f"{endpoint.user}@{endpoint.host}"]


def pinned_options(endpoint: Endpoint, known_hosts: Path) -> dict[str, str]:
    """The machine must show its pinned key and stay awake; nothing of this computer's goes along."""
    # ssh splits this value at spaces and expands % in it; GPTCTL_HOME on macOS has a space.
    file = '"' + str(known_hosts).replace("%", "%%") + '"'
    return {
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": file,
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": endpoint.identity.lower(),
        "ForwardAgent": "no",
        "ConnectTimeout": "10",
        "ServerAliveInterval": str(SILENCE_S),
        "ServerAliveCountMax": "2",
        "LogLevel": "ERROR",
    }


def _options(endpoint: Endpoint, known_hosts: Path) -> list[str]:
    settings = pinned_options(endpoint, known_hosts) | {
        "BatchMode": "yes",
        # ssh's own first choice, chacha20, moves 445 MB/s where AES-GCM moves 585 (measured on loopback).
        "Ciphers": "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes256-ctr",
        "Compression": "no",
        "IdentitiesOnly": "yes" if endpoint.only_these_keys else "no",
    }
    if endpoint.proxy_command:
        settings["ProxyCommand"] = endpoint.proxy_command.replace("%", "%%")
    options = ["-F", "none", "-T", "-p", str(endpoint.port)]
    for name, value in settings.items():
        options += ["-o", f"{name}={value}"]
    for key_file in endpoint.key_files:
        options += ["-i", key_file]
    return options


def _chain(jumps: Sequence[str], depth: int = 0) -> Endpoint | None:
    """ProxyJump a,b: b is dialled from a; the first may have a ProxyJump of its own."""
    if depth > MAX_JUMPS:
        raise UserError("ProxyJump in ~/.ssh/config leads back to itself", hint="ssh would never arrive either")
    jump: Endpoint | None = None
    for spec in jumps:
        user, host, port = _spec(spec)
        endpoint, before = _look_up(host, port=port, user=user, key_file=None)
        jump = replace(endpoint, jump=jump or _chain(before, depth + 1))
    return jump


def _look_up(host: str, *, port: int | None, user: str | None, key_file: str | None) -> tuple[Endpoint, list[str]]:
    settings = _ssh_g(host, port=port, user=user, key_file=key_file)
    name, number = settings["hostname"][0], int(settings["port"][0])
    known_as = settings.get("hostkeyalias") or [name, host]
    endpoint = Endpoint(
        host=name,
        port=number,
        user=settings["user"][0],
        identity=f"[{host}]:{number}",
        key_files=_existing(settings.get("identityfile", [])),
        only_these_keys=key_file is not None or settings.get("identitiesonly") == ["yes"],
        proxy_command=_filled_in(settings, host),
        vouched_names=tuple(dict.fromkeys(n if number == 22 else f"[{n}]:{number}" for n in known_as)),
    )
    jumps = settings.get("proxyjump", ["none"])[0]
    return endpoint, [] if jumps == "none" else jumps.split(",")


def _filled_in(settings: dict[str, list[str]], host: str) -> str | None:
    """The ProxyCommand, its tokens replaced as ssh does. Raises UserError for one that gptctl does not know."""
    command = settings.get("proxycommand", ["none"])[0]
    if command == "none":
        return None
    tokens = {"h": settings["hostname"][0], "p": settings["port"][0], "r": settings["user"][0], "n": host, "%": "%"}
    unknown = [token for token in re.findall("%(.)", command) if token not in tokens]
    if unknown:
        raise UserError(
            f"the ProxyCommand for {host} in ~/.ssh/config has %{unknown[0]}, which gptctl does not fill in",
            hint="use %h, %p, %r or %n there",
        )
    return re.sub("%(.)", lambda found: tokens[found.group(1)], command)


def _ssh_g(host: str, *, port: int | None, user: str | None, key_file: str | None) -> dict[str, list[str]]:
    """ssh's own answer to "what would you do for this host", as option -> values. Connects nowhere."""
    if not host or host.startswith("-") or any(c.isspace() or ord(c) < 32 for c in host):
        raise UserError(f"{host!r} is not a host name or address", hint="correct `address` in the inventory")
    argv = ["ssh", "-G", *config_file()]
    argv += ["-p", str(port)] if port is not None else []
    argv += ["-l", user] if user is not None else []
    argv += ["-i", os.path.expanduser(key_file)] if key_file is not None else []
    try:
        # `--` keeps a hostile name from being read as an option.
        answer = subprocess.run([*argv, "--", host], capture_output=True, text=True, timeout=OWN_PROGRAM_S, check=False)
    except FileNotFoundError:
        raise UserError("`ssh` is not installed on this computer", hint="install the OpenSSH client") from None
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"`ssh -G {host}`, which only reads ~/.ssh/config, did not end within {OWN_PROGRAM_S} s",
            hint="try it by hand: a `Match exec` may hang, or this computer is busy",
        ) from None
    if answer.returncode:
        raise UserError(
            f"ssh does not accept the settings for {host}: {answer.stderr.strip()}", hint="see ~/.ssh/config"
        )
    settings: dict[str, list[str]] = {}
    for line in answer.stdout.splitlines():
        option, _, value = line.partition(" ")
        settings.setdefault(option, []).append(value)
    if key_file is not None:
        settings["identityfile"] = [_present(key_file)]
    return settings


def config_file() -> list[str]:
    """ssh looks the home folder up in the user database; everything else of gptctl goes by $HOME, and so does this."""
    if str(Path.home()) == pwd.getpwuid(os.getuid()).pw_dir:
        return []
    config = Path.home() / ".ssh" / "config"
    return ["-F", str(config) if config.exists() else "none"]


def _present(key_file: str) -> str:
    if not os.path.exists(os.path.expanduser(key_file)):
        raise UserError(f"the key {key_file} does not exist", hint="correct `ssh_key` in the inventory")
    return key_file


def _existing(files: Sequence[str]) -> tuple[str, ...]:
    found = [os.path.expanduser(file) for file in files]
    return tuple(file for file in found if os.path.exists(file))


def _spec(text: str) -> tuple[str | None, str, int | None]:
    """`[user@]host[:port]` or `ssh://...` of a ProxyJump."""
    text = text.removeprefix("ssh://")
    user, at, rest = text.rpartition("@")
    if rest.startswith("["):
        host, _, tail = rest[1:].partition("]")
        port = tail.removeprefix(":")
    else:
        host, _, port = rest.partition(":")
    return (user if at else None), host, (int(port) if port else None)
