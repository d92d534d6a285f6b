"""What a rented host needs before you rent it: an account that answers, a host key, a guard that is alive.

It buys nothing and connects to no machine; `--drill` does.
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
"""Providers on whose current images an injected host key is not proven to work."""


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
    provider = provider_of(host, machine_of(host), home)
    try:
        ours = [each for each in provider.machines() if each.rental_id]
    except (ProviderError, UserError) as error:
        return Finding("account", FAIL, error.message, error.hint)
    found, odd = f"{host.provider} answers; it holds {len(ours)} of our machines", provider.take_warnings()
    if odd:
        return Finding("account", WARN, "; ".join([found, *odd]), "gptctl leaves out the rows that it cannot read")
    return Finding("account", OK, found)


def _offer(host: HostSpec) -> Finding:
    offer = offer_for(host, machine_of(host), ask_for([host]).offers)
    if offer is None:
        return Finding(
            "offer", FAIL, f"{host.provider} does not offer {host.machine}", "gptctl offers shows what it offers"
        )
    price = f"{offer.machine} at {dollars(offer.price_per_hour_usd)}/h ({offer.source})"
    if host.max_price_per_hour_usd is not None and offer.price_per_hour_usd > host.max_price_per_hour_usd:
        return Finding("offer", FAIL, f"{price}, above max_price_per_hour_usd", "raise it, or wait")
    capacity = "" if offer.available else ", no capacity now"
    return Finding(
        "offer", OK if offer.available else WARN, price + capacity, "gptctl run ... --wait waits for capacity"
    )


def _host_key(host: HostSpec) -> Finding:
    if host.host_key == "first-contact":
        return Finding("host key", OK, "pinned on first contact; nothing vouches for it")
    if host.provider not in UNPROVEN:
        return Finding("host key", OK, "created here, injected at launch and pinned")
    found = (
        f"injected at launch; not proven to work with {host.provider}'s current images. A machine that does not use it"
    )
    fix = 'host_key = "first-contact" trusts the first key that the machine shows'
    return Finding("host key", WARN, f"{found} is given back before anything is sent", fix)


def _guard(home: Path, host: HostSpec) -> Finding:
    by_power_off = provider_of(host, machine_of(host), home).ends_by_power_off
    usual = '"self"' if by_power_off else '"watcher" or "key-on-box"'
    fix = f"guard = {usual} in [hosts.{host.name}]; docs/concepts/guards.md"
    if host.guard == "self" and not by_power_off:
        what = f"self: {host.provider} keeps billing a machine that powers itself off, so gptctl rents none"
        return Finding("guard", FAIL, what, fix)
    if host.guard == "none":
        return Finding("guard", FAIL, "none: nothing ends a forgotten machine", fix)
    who = {
        "watcher": "gptctl orphans --reap on another computer",
        "key-on-box": "the machine itself, with the API key",
        "self": "the machine powers itself off, which ends its bill; no key is on it",
    }
    proof = f"gptctl check {host.name} --drill proves it"
    return Finding("guard", OK, f"{host.guard}: {who.get(host.guard, 'the provider')}; {proof}")


def _spot(host: HostSpec) -> Finding:
    """A machine that may be taken away, and what becomes of the last checkpoint then."""
    what = "taken away at two minutes' notice; the training then saves and ends as preempted. The last checkpoint "
    if host.checkpoint_store:
        return Finding("spot", OK, f"{what}goes to {host.checkpoint_store}")
    fix = f"set checkpoint_store in [hosts.{host.name}]; gptctl plan says whether two minutes are enough"
    return Finding("spot", WARN, f"{what}is lost unless gptctl follows the run and fetches it in time", fix)


def _watcher(home: Path, host: HostSpec) -> Finding:
    age_s = watcher_alive(home, time.time(), host.provider)
    if age_s is None:
        fix = "on a computer that is always on: gptctl orphans --install-timer"
        return Finding("watcher", WARN, f"no sign of one for {host.provider} for 15 minutes", fix)
    return Finding("watcher", OK, f"alive: its last good pass was {duration(age_s)} ago")
