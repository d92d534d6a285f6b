"""What a plan expects beside the training itself: the hours of each stage, its dollars, and how it ends unattended.

Pure. Where nothing is measured the figures of [assumed] in machines.toml stand in.
"""

from __future__ import annotations

import math
from dataclasses import asdict

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, Recipe
from orchestrator.core.formats import dollars
from orchestrator.core.machines import MachineType, assumed
from orchestrator.core.planning.plan import CostUsd, Hours
from orchestrator.core.planning.price import Quote
from orchestrator.core.planning.rates import Rate
from orchestrator.core.planning.remainder import left, unread_steps
from orchestrator.core.ports import Offer
from trainer.arithmetic import checkpoint_bytes, chinchilla_tokens


def hours_by_stage(
    recipe: Recipe,
    host: HostSpec | None,
    machine: MachineType,
    *,
    steps: int,
    tokens: int,
    rate: Rate,
    from_step: int = 0,
    fetch_mb_per_s: float | None = None,
) -> Hours:
    """Hours of boot, provision, data, train and fetch, of the steps after from_step. `tokens` are of all steps.
    fetch_mb_per_s: as measured; None: assumed."""
    facts, paid, provider = assumed(), host is None or host.paid, host.provider if host else ""
    boot_minutes = (machine.boot_minutes or facts.boot_minutes) if paid else 0.0
    fetch_rate = facts.store_mb_per_s if host and host.checkpoint_store else facts.fetch_mb_per_s.of(provider, paid)
    if fetch_mb_per_s is not None:
        fetch_rate = fetch_mb_per_s
    tokens_left = tokens - recipe.course(steps).tokens(from_step) if left(steps, from_step) else 0
    brought = data_bytes(recipe, host, steps=steps, tokens=tokens, from_step=from_step)
    if from_step:
        brought += checkpoint_bytes(recipe.model.config(), recipe.train.optimizer)
    return Hours.of(
        boot=boot_minutes / 60,
        provision=facts.provision_minutes.of(provider, paid) / 60,
        data=brought / (facts.data_mb_per_s.of(provider, paid) * 1e6) / 3600,
        train=tokens_left / rate.tokens_per_second / 3600,
        fetch=kept_bytes(recipe, steps, from_step) / (fetch_rate * 1e6) / 3600,
    )


def bytes_per_token(recipe: Recipe) -> int:
    """Token files are uint16 for every vocabulary up to 65,536, and uint32 beyond."""
    return 2 if recipe.model.vocab_size <= 1 << 16 else 4


def data_bytes(recipe: Recipe, host: HostSpec | None, *, steps: int, tokens: int, from_step: int = 0) -> int:
    """Size of the tokens that the machine gets: those of the steps after from_step where it pulls one epoch in order,
    else all that the run reads. `tokens` are of all steps."""
    window = recipe.data.tokens
    if window is not None and window < tokens:  # further epochs read all of it again
        return window * bytes_per_token(recipe)
    return (steps - unread_steps(recipe, host, from_step)) * (tokens // steps) * bytes_per_token(recipe)


def kept_bytes(recipe: Recipe, steps: int, from_step: int = 0) -> int:
    """Size of the checkpoints of the steps after from_step that are kept at the end: the newest, the best, and every so
    many steps."""
    train = recipe.train
    written = math.ceil(steps / train.checkpoint_every) - from_step // train.checkpoint_every
    marked = steps // train.keep_every - from_step // train.keep_every if train.keep_every else 0
    kept = train.keep_last + 1 + marked
    return min(written, kept) * checkpoint_bytes(recipe.model.config(), train.optimizer)


def tokens_about(recipe: Recipe) -> int:
    """Tokens of the training, by the recipe alone: "all" of data whose length it does not tell counts as 20 per
    parameter."""
    wanted = recipe.train.tokens
    if isinstance(wanted, int):
        return wanted
    return (recipe.data.tokens if wanted == "all" else None) or chinchilla_tokens(recipe.model.config())


def kept_about(recipe: Recipe) -> int:
    """kept_bytes, by the recipe alone."""
    return kept_bytes(recipe, recipe.steps_for(tokens_about(recipe)))


def disk_gib(recipe: Recipe, steps: int, tokens: int, from_step: int = 0) -> int:
    """What a run needs of a disk that is chosen at launch: system, environment, tokens, what is kept and what is being
    written, and a fifth on top. tokens: that are read, or more."""
    return assumed().system_gib + math.ceil(1.2 * sum(_disk_bytes(recipe, steps, tokens, from_step)) / 2**30)


def disk_trouble(recipe: Recipe, offer: Offer | None, steps: int, tokens: int, from_step: int = 0) -> tuple[str, str]:
    """(why it cannot fit, what to be warned of) on the disk that is offered as it is; empty where all is well or
    nobody knows."""
    disk = offer.disk_gib if offer else None
    data, checkpoints = (size / 2**30 for size in _disk_bytes(recipe, steps, tokens, from_step))
    if disk is None or disk_gib(recipe, steps, tokens, from_step) <= disk:
        return "", ""
    need = f"data {data:,.1f} GiB, checkpoints {checkpoints:,.1f} GiB; its disk has {disk:,} GiB"
    if data + checkpoints > disk:
        return f"{need}: lower keep_last or keep_every keeps fewer, or train on fewer tokens", ""
    return "", f"the disk may be too small beside the system: {need}"


def _disk_bytes(recipe: Recipe, steps: int, tokens: int, from_step: int) -> tuple[int, int]:
    """Of the tokens, which keep their places in the files, and of the checkpoints: those kept, the one to resume from,
    one being written, one that retention takes next."""
    others = 2 + (from_step > 0)
    written = kept_bytes(recipe, steps, from_step) + others * checkpoint_bytes(
        recipe.model.config(), recipe.train.optimizer
    )
    return min(tokens, recipe.data.tokens or tokens) * bytes_per_token(recipe), written


def spread(hours: Hours, price_per_hour_usd: float | None, uncertainty: float) -> CostUsd:
    """Dollars by stage, and the range of the total when training is off by +- `uncertainty`."""
    if price_per_hour_usd is None:
        return CostUsd()
    slack_usd = hours.train * uncertainty * price_per_hour_usd
    by_stage = {stage: value * price_per_hour_usd for stage, value in asdict(hours).items()}
    return CostUsd(**by_stage, less_usd=slack_usd, more_usd=slack_usd)


def ending(host: HostSpec | None, price: Quote, limits: Limits, ceiling: float | None, hours: Hours) -> str:
    """What it costs, in dollars and in checkpoints, if you are away when training ends, and what would prevent it."""
    if host is None:
        return "depends on the host entry: none is chosen"
    return f"If this computer is off when training ends: {_ending_without_you(host, price, limits, ceiling, hours)}"


def _ending_without_you(host: HostSpec, price: Quote, limits: Limits, ceiling: float | None, hours: Hours) -> str:
    if not host.paid:
        return "$0; the checkpoints wait on the machine until you fetch them"
    safe = f"the best and latest checkpoint go to {host.checkpoint_store}" if host.checkpoint_store else ""
    if host.guard == "none":
        rate = f"{dollars(price.per_hour_usd)}/h" if price.per_hour_usd else "the machine is billed"
        return (
            f"{rate} until you come back: nothing ends the machine. To prevent: set guard{f'; {safe}' if safe else ''}"
        )
    if host.guard == "watcher":  # which knows the deadline alone: it comes no sooner, whatever hold_h says
        end_h = _end_hour(price, limits, ceiling, hours)
        left_h = max(0.0, end_h - (hours.total - hours.fetch))
        more = f"{_at_most(left_h, price)} more, until the watcher ends the machine at hour {end_h:.1f}"
    elif safe:
        return f"$0 more; {safe}, and the machine ends itself"
    else:
        more = f"{_at_most(_hold_hours(price, limits, ceiling, hours), price)} more"
    return f"{more}; {safe}" if safe else f"{more}, and the checkpoints are LOST. To prevent: set checkpoint_store"


def _at_most(hours: float, price: Quote) -> str:
    """`up to $9`, or the hours where the price is not known."""
    return f"up to {dollars(hours * price.per_hour_usd)}" if price.per_hour_usd else f"up to {hours:.1f} h"


def _end_hour(price: Quote, limits: Limits, ceiling: float | None, hours: Hours) -> float:
    """Hours from the launch to the budget deadline."""
    ends = [limits.max_hours] if limits.max_hours is not None else []
    if ceiling is not None and price.per_hour_usd:
        ends.append(ceiling / price.per_hour_usd)
    return min(ends, default=hours.total)


def _hold_hours(price: Quote, limits: Limits, ceiling: float | None, hours: Hours) -> float:
    """Hours left from the end of training to the budget deadline, cut by hold_h."""
    left = max(0.0, _end_hour(price, limits, ceiling, hours) - (hours.total - hours.fetch))
    return left if limits.hold_h is None else min(left, limits.hold_h)
