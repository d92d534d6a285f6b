"""Whether the notice before a spot machine is taken away is long enough for a recipe's checkpoint. Pure arithmetic.

Example: `in_time(recipe, host, steps_per_second=2.7)` -> "spot: two minutes' notice are enough: 2.0 GB are safe in ..."
"""

from __future__ import annotations

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.machines import assumed
from trainer.arithmetic import checkpoint_bytes

NOTICE_S = 120.0
POLL_S = 5.0
"""Between two looks at the metadata, on the machine."""


def in_time(recipe: Recipe, host: HostSpec, steps_per_second: float) -> str:
    """What a plan says of a spot host: the seconds from the notice until the newest checkpoint is safe, part by part.

    With a store the bytes travel twice, since they are read back; without one they come here, if gptctl follows.
    """
    facts = assumed()
    size_mb = checkpoint_bytes(recipe.model.config(), recipe.train.optimizer) / 1e6
    step_s = recipe.train.log_every / steps_per_second  # ranks agree on a stop at logged steps
    save_s = size_mb / facts.save_mb_per_s
    rate = facts.store_mb_per_s if host.checkpoint_store else facts.fetch_mb_per_s.paid
    move_s = (2 if host.checkpoint_store else 1) * size_mb / rate
    whole_s = POLL_S + step_s + save_s + move_s
    where = "to the store and back" if host.checkpoint_store else "here, if gptctl follows"
    size = f"{size_mb / 1000:.2f} GB" if size_mb >= 100 else f"{size_mb:.1f} MB"
    parts = (
        f"{size} are safe in {whole_s:.0f} s ({POLL_S:.0f} s to hear of it, {step_s:.0f} s to the "
        f"next logged step, {save_s:.0f} s to save, {move_s:.0f} s {where} at {rate:g} MB/s, assumed)"
    )
    if whole_s <= NOTICE_S:
        return f"spot: two minutes' notice are enough: {parts}"
    fix = "" if host.checkpoint_store else "; set checkpoint_store"
    return f"spot: two minutes' notice are NOT enough, the last interval would be lost: {parts}{fix}"
