"""What an order carries so that its machine is guarded from its first moment: deadlines, tags, and the text cloud-init
applies at the first boot: the host key that we made and will pin, and where the machine is to end itself the timer that
powers it off, armed before anything else and at every boot.

JSON is YAML: nothing has to be escaped by hand. Whatever runs on the machine can read this text, so it holds no other
secret, and the key is replaced over the first verified session.

Example: `user_data(new_key_pair("rental"), Timer("8xa100-1126-k3f9qa", 5400))` starts with "#cloud-config"
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.agent.contract.names import GRACE_S
from orchestrator.core.errors import UserError
from orchestrator.core.fleet.machine_names import NODE_TAG, RUN_TAG
from orchestrator.core.planning.forecast import disk_gib
from orchestrator.core.ports import LaunchRequest
from orchestrator.remote.shell.key_pairs import KeyPair, new_key_pair
from orchestrator.remote.shell.known_hosts import HostKey
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline

PROGRAM = Path(__file__).with_name("gptctl-self.sh")
# bootcmd, since it comes first, before write_files too, and at every boot; so it has to write the program itself.
# Into the first folder of the PATH: /usr/local/sbin.
INSTALL = """d=${PATH%%:*}; mkdir -p "$d" && printf %s "$1" > "$d/gptctl-self.new" && chmod 755 "$d/gptctl-self.new" &&
mv "$d/gptctl-self.new" "$d/gptctl-self" && exec "$d/gptctl-self" boot "$2" "$3"
"""


@dataclass(frozen=True)
class Timer:
    """A machine that powers itself off `first_s` seconds after its boot, unless its agent moves that moment."""

    rental_id: str
    """Whose machine it is: the timer obeys no agent that was armed for another."""
    first_s: int


def user_data(host_key: KeyPair | None, timer: Timer | None = None) -> str:
    """A cloud-config that makes this ed25519 pair the machine's only host key, and arms the timer."""
    config: dict[str, object] = {}
    if host_key is not None:
        config["ssh_deletekeys"] = True
        config["ssh_keys"] = {"ed25519_private": host_key.private, "ed25519_public": host_key.public}
        config["ssh_pwauth"] = False
    if timer is not None:
        config["bootcmd"] = [
            ["sh", "-c", INSTALL, "sh", PROGRAM.read_text("utf-8"), timer.rental_id, str(timer.first_s)]
        ]
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n" if config else ""


def guarded(context: RunContext, request: LaunchRequest) -> LaunchRequest:
    """With its deadlines, and with a host key made here, which is pinned before the machine exists."""
    budget = deadline.budget_deadline(context)
    ends_at = budget and budget + GRACE_S
    # So that another ledger can adopt the run with the machine.
    name = context.host.name if context.node else (context.host.nodes or ("0",))[0]
    number = name.rpartition("-")[2]  # what was lost and replaced had that of no other
    tags = {RUN_TAG: context.run_id, **({NODE_TAG: number} if request.nodes > 1 else {})}
    disk = disk_gib(context.recipe, context.plan.steps, context.plan.tokens, context.plan.from_step)
    request = replace(
        request, ends_at=ends_at, first_ends_at=deadline.first_deadline(context), tags=tags, disk_gib=disk
    )
    return replace(request, user_data=_first_boot(context, request))


def _first_boot(context: RunContext, request: LaunchRequest) -> str:
    """The user data: a host key that is pinned before the machine exists, and the timer of a machine that ends itself.
    Raises UserError where that would end no bill."""
    timer, pair = None, None
    if context.host.guard == "self":
        if not context.provider.ends_by_power_off:
            raise UserError(
                f'{context.host.name}: guard "self" is none on {context.host.provider}, where a machine that powers '
                "itself off is billed on",
                'set guard = "watcher" or "key-on-box"; docs/concepts/guards.md',
            )
        timer = Timer(request.rental_id, int(deadline.FIRST_S))
    if context.host.host_key != "first-contact":
        pair = new_key_pair(request.rental_id)
        kind, key, *_ = pair.public.split()
        context.set_rental_facts(host_key=HostKey(kind, key).fingerprint)
    return user_data(pair, timer)
