"""What others published for the run that a recipe repeats: [[published]] in the recipe.

Figures are of their code. They anchor ours in `plan` and `compare`; nothing is computed from them.

    recipe.published[0].words()       # "G. Thomas: test loss 3.577761, 3.18 h on 8xA100-40GB, $37.62 (https://...)"
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from orchestrator.core.config.toml_tables import Line, Table
from orchestrator.core.formats import count

Loss = Annotated[float, Field(ge=0, le=1_000)]


class Published(Table):
    """One published result of this recipe. Losses are nats per token on the tokens that `note` or the source names."""

    by: Line
    """Who published it."""
    source: Line
    """Where: an address."""
    machine: Line | None = None
    """What it ran on."""
    test_loss: Loss | None = None
    """On the recipe's test slice."""
    val_loss: Loss | None = None
    """On held-out tokens."""
    train_loss: Loss | None = None
    """Of the last training steps."""
    first_loss: Loss | None = None
    """Of the first step."""
    hours: float | None = Field(default=None, gt=0, le=1_000_000)
    """Of training."""
    cost_usd: float | None = Field(default=None, ge=0, le=10_000_000)
    """What it cost."""
    tokens: int | None = Field(default=None, ge=1, le=10**15)
    """Trained on."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Over the whole machine."""
    note: Line | None = None
    """What differs from this recipe, or is not known."""

    def losses(self) -> list[tuple[str, float]]:
        """Those that are known, by their names in words."""
        named = (
            ("test", self.test_loss),
            ("val", self.val_loss),
            ("train", self.train_loss),
            ("first", self.first_loss),
        )
        return [(f"{name} loss", value) for name, value in named if value is not None]

    def words(self) -> str:
        """On one line."""
        facts = [f"{name} {value}" for name, value in self.losses()]
        where = f" on {self.machine}" if self.machine else ""
        facts += [f"{self.hours:.3g} h{where}"] if self.hours else [where.strip()] if where else []
        facts += [f"${self.cost_usd:,.2f}"] if self.cost_usd is not None else []
        facts += [f"{count(self.tokens)} tokens"] if self.tokens else []
        facts += [f"{count(self.tokens_per_second)} tok/s"] if self.tokens_per_second else []
        said = f"{self.by}: {', '.join(facts)}" if facts else self.by
        return f"{said}{f'; {self.note}' if self.note else ''} ({self.source})"
