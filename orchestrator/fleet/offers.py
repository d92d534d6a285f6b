"""What the clouds would sell now: every configured account asked at once, each for two seconds at most.

Where an account does not answer, or has no key, or no call is to be made, the bundled price with its date stands in.

Example::

    market = ask(accounts_of(inventory))
    offer_for(inventory.host("lambda-8xa100"), machine, market.offers)     # None: not sold
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from orchestrator import providers
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import GptctlError, NoAnswer, ProviderError, UserError
from orchestrator.core.machines import MachineType, all_machine_types, bundled_offers, of_all
from orchestrator.core.parallel import answers_within
from orchestrator.core.ports import Offer
from orchestrator.fleet.accounts import Account, accounts_behind

ASK_WITHIN_S = 2.0


@dataclass(frozen=True)
class Market:
    """Offers of all accounts; `problems`: why an account's are bundled ones, by its name; `refusals`: those that are
    more than silence; `warnings`: rows of price lists that could not be read."""

    offers: tuple[Offer, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[str, ProviderError] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def ask_for(hosts: Iterable[HostSpec], within_s: float = ASK_WITHIN_S) -> Market:
    """The offers of these hosts' accounts, and the bundled ones of everybody who was not asked."""
    asked = ask(accounts_behind(host for host in hosts if host.provider in providers.known()), within_s)
    names = {offer.provider for offer in asked.offers}
    others = [offer for offer in bundled() if offer.provider not in names]
    return replace(asked, offers=(*asked.offers, *others))


def ask(accounts: Sequence[Account], within_s: float = ASK_WITHIN_S) -> Market:
    """The offers of every account that answers in time, in the accounts' order."""
    answers = answers_within(within_s, {each.name: partial(_fetch_offers, each, within_s) for each in accounts})
    offers: list[Offer] = []
    problems: dict[str, str] = {}
    refusals: dict[str, ProviderError] = {}
    warnings: list[str] = []
    for account in accounts:
        answer = answers.get(account.name, NoAnswer(f"no answer within {within_s:.0f} s"))
        if isinstance(answer, GptctlError):
            problems[account.name] = answer.message
            if isinstance(answer, ProviderError) and not isinstance(answer, NoAnswer):
                refusals[account.name] = answer
            answer = bundled(account.provider.name)
        offers += answer
        warnings += account.provider.take_warnings()
    return Market(tuple(offers), problems, refusals, tuple(warnings))


def _fetch_offers(account: Account, within_s: float) -> Sequence[Offer] | GptctlError:
    """Its offers, or why there are none."""
    try:
        return account.provider.offers(within_s)
    except (ProviderError, UserError) as error:
        return error


def bundled(provider: str | None = None) -> list[Offer]:
    """Last known prices of one provider or of all; whether there is capacity is unknown."""
    return [
        offer
        for machine in all_machine_types()
        for offer in bundled_offers(machine.name)
        if provider in (None, offer.provider)
    ]


def offer_for(host: HostSpec | None, machine: MachineType, offers: Sequence[Offer]) -> Offer | None:
    """The offer a run there would take: in one of the host's regions, with capacity before without, then the cheapest.

    host None: of any host. None where no account sells such a machine. Of several nodes its price is that of all.
    """
    fitting = [
        of_all(offer, machine) for offer in offers if offer.machine == machine.node.name and _is_for(host, offer)
    ]
    return min(fitting, key=lambda offer: (not offer.available, offer.price_per_hour_usd), default=None)


def _is_for(host: HostSpec | None, offer: Offer) -> bool:
    if host is None:
        return not offer.spot
    return (offer.provider, offer.spot) == (host.provider, host.spot) and (
        not offer.region or not host.regions or offer.region in host.regions
    )
