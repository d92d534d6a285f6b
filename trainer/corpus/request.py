"""What a preparation is asked for: the part of it that decides every byte, as dataset.json keeps it.

Example: `Request("books/*.txt", tokenizer="gpt2").to_json()`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from trainer.corpus.encode import SKIP
from trainer.layout.token_layout import SAFETENSORS
from trainer.tokens.tokenizer import END_OF_TEXT

HOLD_OUT_EVERY = 20
"""One document in this many, chosen by its hash, is held out for validation."""
SHARD_TOKENS = 100_000_000


@dataclass(frozen=True)
class MixRequest:
    """One source of a mixture: its name, its weight, where its text is, and the key or column that holds it."""

    source: str
    weight: float
    paths: tuple[str, ...]
    column: str = "text"
    revision: str | None = None

    @staticmethod
    def from_json(text: str) -> MixRequest:
        """The value of --mix. Raises ValueError, TypeError."""
        value = json.loads(text)
        return MixRequest(**{**value, "paths": tuple(value["paths"])})


@dataclass(frozen=True)
class Request:
    """What to prepare, stored in dataset.json, so that the same request on the same text is not done twice."""

    source: str
    """Its name in dataset.json: the path, the glob or the URI."""
    tokenizer: str = "gpt2"
    separator: str = END_OF_TEXT
    """Special token after each document; empty: none."""
    documents: int | None = None
    bytes: int | None = None
    column: str = "text"
    """The JSON key, or the CSV or Parquet column, that holds the text."""
    format: str = SAFETENSORS
    shard_tokens: int = SHARD_TOKENS
    hold_out_every: int = HOLD_OUT_EVERY
    """One document in this many is for validation; 0: none."""
    invalid: str = SKIP
    """What happens to a document that is not UTF-8: skip or replace."""
    revision: str | None = None
    """The commit of a source that was downloaded."""
    tokens: int | None = None
    """Stop with the document that reaches so many tokens."""
    mix: tuple[MixRequest, ...] = ()
    """The sources of a mixture, instead of paths."""
    exclude: str | None = None
    """The dataset whose documents are left out, by name."""
    excluded_sha256: str | None = None
    """Of those documents."""
    inputs_sha256: str | None = None
    """Of the source files, where a mixture decides which of their documents count."""

    @property
    def is_mixed(self) -> bool:
        """Whether documents are chosen one by one: by weight, up to a budget, or by what another dataset has."""
        return bool(self.mix or self.tokens or self.exclude)

    def sources(self, paths: Sequence[str]) -> tuple[MixRequest, ...]:
        """Those of the mixture, else the one at these paths."""
        return self.mix or (MixRequest(self.source, 1.0, tuple(paths), self.column, self.revision),)

    def to_json(self) -> dict[str, object]:
        """For dataset.json. What is newer and not asked for is not there: older datasets answer the same request."""
        newer = ("tokens", "mix", "exclude", "excluded_sha256", "inputs_sha256")
        values = {key: value for key, value in asdict(self).items() if key not in newer or value}
        if self.mix:  # where the text is on this computer decides nothing
            values["mix"] = [[each.source, each.weight, each.column, each.revision] for each in self.mix]
        return values
