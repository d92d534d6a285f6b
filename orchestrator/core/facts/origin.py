"""Where the first weights of a run come from: another run, or a model that was imported. Its whole history in tokens.

Origin(RESUMED, "/home/me/.gptctl/runs/a-1120-k3f9qa/checkpoints/step-000617", step=617, run="a-1120-k3f9qa")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

IMPORTED, RESUMED, STARTED = "imported", "resumed", "initialised"
"""The weights of another program; weights and optimizer of a run; its weights alone, from step 0."""


@dataclass(frozen=True)
class SourceTokens:
    """How many tokens of one data source a model has seen."""

    source: str
    tokens: int


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run began from, or what an imported model was read from."""

    how: str
    place: str
    """Its folder on this computer, or its URI; of the Hub with the commit."""
    step: int = 0
    sha256: str = ""
    """Of its model.safetensors."""
    run: str | None = None
    """The run in this ledger that made it."""
    base_model: str | None = None
    """OWNER/NAME on the Hub, where the history begins there."""
    seen: tuple[SourceTokens, ...] = ()
    """Tokens of each data source before, oldest first; of an imported model unknown, so none."""
    layout: str | None = None
    """Whose layout an imported model had."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the files that were imported, by name."""

    @property
    def imported(self) -> bool:
        return self.how == IMPORTED


@dataclass(frozen=True)
class Lineage:
    """What a checkpoint's meta.json carries of its history: the run's data, its first step, and what was before."""

    source: str = ""
    from_step: int = 0
    before: tuple[SourceTokens, ...] = ()
    origin: Origin | None = None
    own_tokens: int = 0
    """Trained by the run that wrote the checkpoint."""
    data: Mapping[str, object] = field(default_factory=dict)
    """What decides which tokens were read: source, window, order and digest."""

    @property
    def seen(self) -> tuple[SourceTokens, ...]:
        """Of every source up to this checkpoint, oldest first."""
        return added(self.before, [SourceTokens(self.source, self.own_tokens)])


def added(seen: Sequence[SourceTokens], more: Sequence[SourceTokens]) -> tuple[SourceTokens, ...]:
    """Both, in order; a source that follows itself is one entry, and what gave no token is none."""
    whole: list[SourceTokens] = []
    for each in (*seen, *more):
        if whole and whole[-1].source == each.source:
            whole[-1] = SourceTokens(each.source, whole[-1].tokens + each.tokens)
        elif each.tokens > 0:
            whole.append(each)
    return tuple(whole)
