"""Keeper: a home box calls the machine and keeps what that stores. It is started here, and continues on its own.

The key is made for this run and never written to a disk: its private half goes to the box, and the public half to the
machine, where it lets in for one command. Doing it again makes another key, which takes the place of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from orchestrator.agent.contract.names import JobName, StoreState
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.checkpoints import store_places
from orchestrator.core.config import home_box
from orchestrator.core.errors import GptctlError, RemoteError, UserError
from orchestrator.core.ports import Shell
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.agent_client.package import agent_package
from orchestrator.remote.shell.key_pairs import new_key_pair
from orchestrator.remote.shell.known_hosts import pinned
from orchestrator.remote.shell.login_shell import shell_line
from orchestrator.remote.shell.ssh_endpoint import resolve
from orchestrator.stages.context import RunContext
from orchestrator.stores.home_box import HomeBoxStorage

MACHINE = "gptctl-machine"
"""The machine's name in the box's known_hosts; see agent/checkpoints/home_box_caller.py."""


@dataclass(frozen=True)
class Call:
    """A way for the box into the machine: what each of the two has to know."""

    authorized: str
    """For the machine: one line of authorized_keys."""
    spec: JobSpec
    secrets: dict[str, str] = field(repr=False)


def wanted(context: RunContext) -> bool:
    """Whether this run's store is a home box."""
    return home_box.is_home(context.host.checkpoint_store)


def new_call(context: RunContext) -> Call:
    """With a fresh key. Raises UserError for a machine that the box could not call directly."""
    address = context.rental.address
    there = resolve(address)
    if there.jump is not None or there.proxy_command is not None:
        through = there.jump or "a ProxyCommand"
        raise UserError(
            f"{context.host.name} is reached through {through}: a home box calls it directly",
            "choose another checkpoint_store for this host",
        )
    agent = context.agent
    program = f"{agent.root}/agent/{agent_package().name}"
    command = shell_line([agent.python, "-I", "-S", program, "link", context.run_id])
    pair = new_key_pair(context.run_id)
    quoted = command.replace("\\", "\\\\").replace('"', '\\"')
    public = " ".join(pair.public.split()[:2])
    keys = pinned(context.home / "known_hosts", address.identity)
    return Call(
        f'restrict,command="{quoted}" {public}',
        {
            "folder": home_box.parts(_uri(context))[1],
            "host": there.host,
            "port": there.port,
            "user": there.user,
            "command": command,
        },
        {"key": pair.private, "known_hosts": "".join(f"{MACHINE} {key.kind} {key.base64}\n" for key in keys)},
    )


def start(context: RunContext, call: Call) -> None:
    """The box calls, from now on until all is stored. Raises RemoteError, or AgentError in the box's own words."""
    with _shell(context) as shell:
        context.open_firewall(shell)
        agent = _agent(context, shell)
        agent.start(JobName.KEEP, context.run_id, _uri(context), call.spec, call.secrets)


def start_again(context: RunContext, call: Call) -> None:
    """As start, while a run trains: a box that is away now is only reported."""
    try:
        start(context, call)
    except (RemoteError, UserError) as error:
        context.emit("seen", f"{_box(context).name}: {error.message}")


def problem(context: RunContext) -> str:
    """What the box itself says of its calls; empty where it is content, or cannot be asked."""
    try:
        with _shell(context) as shell:
            run = _agent(context, shell).status(context.run_id)["runs"][context.run_id]
    except GptctlError:
        return ""
    return (run["keep"]["problem"] if run["keep"] else None) or ""


def stop(context: RunContext) -> None:
    """No more calls: for a machine that went without a word to the box."""
    facts = context.facts
    if not wanted(context) or not facts.store_urls or (facts.store and facts.store.state == StoreState.SAFE):
        return
    try:
        with _shell(context) as shell:
            _agent(context, shell).release(context.run_id)
    except (RemoteError, UserError) as error:
        context.emit("seen", f"{_box(context).name} does not know that the run is over: {error.message}")


def _uri(context: RunContext) -> str:
    return store_places.run_uri(context.host.checkpoint_store or "", context.run_id)


def _box(context: RunContext) -> home_box.HomeBox:
    return _storage(context).box


def _storage(context: RunContext) -> HomeBoxStorage:
    found = context.storage(_uri(context))
    assert isinstance(found, HomeBoxStorage), "an ssh:// URI is answered for by a home box"
    return found


@contextmanager
def _shell(context: RunContext) -> Iterator[Shell]:
    with _storage(context).shell() as shell:
        yield shell


def _agent(context: RunContext, shell: Shell) -> Agent:
    return Agent(shell, _box(context).agent_folder)
