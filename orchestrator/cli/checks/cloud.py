"""What a host that is rented needs before it is rented: an account that answers, a host key, a guard that is alive.

It buys nothing and reaches no machine; `--drill` does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator import providers
from orchestrator.cli.checks.finding import FAIL, OK, WARN, Finding
from orchestrator.cli.machine_types import machine_of
from orchestrator.core.config.gptctl_home import home_folder
from orchestrator.core.config.inventory import HostSpec, load_inventory
from orchestrator.core.errors import ProviderError, UserError
from orchestrator.core.fleet.watcher_mark import watcher_alive
from orchestrator.core.formats import dollars, duration
from orchestrator.fleet.offers import ask_for, offer_for
from orchestrator.wiring import provider_of

UNPROVEN = frozenset({"lambda", "ec2"})
"""Providers on whose images of today nobody has seen an injected host key work."""


def findings(home: Path, host: HostSpec) -> Iterator[Finding]:
    """From the account to what ends a forgotten machine."""
    yield _account(home, host)
    yield _offer(host)
    yield _host_key(host)
    yield _guard(home, host)
    if host.guard == "watcher":
        yield _watcher(home, host)
    if host.spot:
        yield _spot(host)


def policy(host_name: str | None, inventory: Path | None) -> int:
    """Prints what the credentials have to be allowed, as the provider's own document. Raises UserError without one."""
    if host_name is None:
        raise UserError("--policy is for a host", "gptctl hosts lists them")
    host = load_inventory(inventory, home_folder()).host(host_name)
    document = getattr(providers.load(host.provider), "policy", None)
    if document is None:
        raise UserError(f"{host_name}: {host.provider} has no policies: its keys may do everything or nothing")
    print(json.dumps(document(), indent=2))
    return 0


def _account(home: Path, host: HostSpec) -> Finding:
    try:
        ours = [each for each in provider_of(host, machine_of(host), home).machines() if each.rental_id]
    except (ProviderError, UserError) as error:
        return Finding("account", FAIL, error.message, error.hint)
    return Finding("account", OK, f"{host.provider} answers; machines of ours there: {len(ours)}")


def _offer(host: HostSpec) -> Finding:
    offer = offer_for(host, machine_of(host), ask_for([host]).offers)
    if offer is None:
        return Finding("offer", FAIL, f"{host.provider} sells no {host.machine}", "gptctl offers shows what it sells")
    price = f"{offer.machine} at {dollars(offer.price_per_hour_usd)}/h ({offer.source})"
    if host.max_price_per_hour_usd is not None and offer.price_per_hour_usd > host.max_price_per_hour_usd:
        return Finding("offer", FAIL, f"{price}, above max_price_per_hour_usd", "raise it, or wait")
    capacity = "" if offer.available else ", no capacity now"
    return Finding(
        "offer", OK if offer.available else WARN, price + capacity, "gptctl run ... --wait asks until there is"
    )


def _host_key(host: HostSpec) -> Finding:
    if host.host_key == "first-contact":
        return Finding("host key", OK, "pinned as the machine shows it first, which nobody vouches for")
    if host.provider not in UNPROVEN:
        return Finding("host key", OK, "made here, injected at launch and pinned")
    found = f"injected at launch; that {host.provider}'s images of today honour it is unproven. A machine that does not"
    fix = 'host_key = "first-contact" trusts the key that the machine shows first'
    return Finding("host key", WARN, f"{found} is given back before anything is sent", fix)


def _guard(home: Path, host: HostSpec) -> Finding:
    by_power_off = provider_of(host, machine_of(host), home).ends_by_power_off
    usual = '"self"' if by_power_off else '"watcher" or "key-on-box"'
    fix = f"guard = {usual} in [hosts.{host.name}]; docs/concepts/guards.md"
    if host.guard == "self" and not by_power_off:
        what = f"self: on {host.provider} a machine that powers itself off is billed on, so none is rented"
        return Finding("guard", FAIL, what, fix)
    if host.guard == "none":
        return Finding("guard", FAIL, "none: nothing would end a forgotten machine", fix)
    who = {
        "watcher": "gptctl orphans --reap on another computer",
        "key-on-box": "the machine itself, with the API key",
        "self": "the machine powers itself off, which ends its bill; no key is on it",
    }
    proof = f"gptctl check {host.name} --drill proves it"
    return Finding("guard", OK, f"{host.guard}: {who.get(host.guard, 'the provider')}; {proof}")


def _spot(host: HostSpec) -> Finding:
    """A machine that may be taken away, and what becomes of the last checkpoint then."""
    what = "taken away at two minutes' notice; the training then saves and ends as preempted, and the last checkpoint "
    if host.checkpoint_store:
        return Finding("spot", OK, f"{what}goes to {host.checkpoint_store}")
    fix = f"set checkpoint_store in [hosts.{host.name}]; gptctl plan says whether two minutes are enough"
    return Finding("spot", WARN, f"{what}is lost unless gptctl follows: nothing else fetches it in time", fix)


def _watcher(home: Path, host: HostSpec) -> Finding:
    age_s = watcher_alive(home, time.time(), host.provider)
    if age_s is None:
        fix = "on a computer that is always on: gptctl orphans --install-timer"
        return Finding("watcher", WARN, f"no sign of one for {host.provider} in 15 minutes", fix)
    return Finding("watcher", OK, f"alive: its last good pass was {duration(age_s)} ago")
