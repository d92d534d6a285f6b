"""The recipe's [data] tables: which tokens to train on, or which text to make them of.

Tokens come from one place: `source` names token files, [data.prepare] names text. A file that sets both is an error; a
layer above that sets one replaces the other. It must not look at files.

Example::

    lay_over({"data": {"source": "tokens"}}, {"data": {"prepare": {"source": "x.txt"}}}, "--set")   # prepare is left
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from orchestrator.core.config.toml_tables import Line, Table, merge
from orchestrator.core.errors import UserError
from trainer.contract import DataConfig

Tokens = Annotated[int, Field(ge=1, le=10**15)]
Position = Annotated[int, Field(ge=0, le=10**15)]


class Validation(Table):
    """Where the validation loss is measured. Without it: a file named val* beside train*, else the last 1 %."""

    start_token: Position = DataConfig.validation_start_token
    """First token of the slice, counted in the validation file, or in the training stream where there is none."""
    tokens: Tokens | None = None
    """Length of the slice in tokens; without it: the validation files whole, 10 million at most."""
    source: Line | None = None
    """The validation files, where their names do not say it: a file, a folder or a pattern, as in data.source."""


class Mix(Table):
    """One source of a mixture."""

    source: Line
    """As in [data.prepare]."""
    weight: float = Field(gt=0, le=1_000_000)
    """Its share of the tokens, relative to the other weights."""
    column: Line = "text"
    """The JSON key, or the CSV or Parquet column, that holds the text."""


class Prepare(Table):
    """Text to turn into tokens, once, before the run."""

    source: Line | None = None
    """`python-stdlib` (the source files of Python's own library: nothing is downloaded); a file, a folder or a pattern
    of text, JSON Lines, CSV or Parquet; or such files at `hf://OWNER/NAME`, `s3://` or `https://`, which are
    downloaded to this computer first. It is prepared here, before a machine is rented."""
    tokenizer: Line = "gpt2"
    """`bytes` (257 ids, no vocabulary download) or a tiktoken name such as `gpt2`."""
    separator: Annotated[str, StringConstraints(max_length=100)] = "<|endoftext|>"
    """Special token between two documents; empty: none."""
    documents: Annotated[int, Field(ge=1)] | None = None
    """At most this many documents, in name order; without it: all."""
    column: Line = "text"
    """The JSON key, or the CSV or Parquet column, that holds the text."""
    hold_out_every: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """Holds out one document in so many for validation; absent: one in 20."""
    mix: Annotated[tuple[Mix, ...], Field(max_length=100)] = ()
    """[[data.prepare.mix]]: several sources by weight, instead of `source`; needs `tokens`."""
    tokens: Tokens | None = None
    """The budget: gptctl stops with the document that reaches so many tokens."""
    exclude: Line | None = None
    """Token files of the same tokenizer, such as those you test on: documents that are in them are left out."""

    @model_validator(mode="after")
    def _has_one_text(self) -> Self:
        if (self.source is None) == (not self.mix):
            raise ValueError("needs `source`, or tables [[data.prepare.mix]] with source and weight")
        if self.mix and self.tokens is None:
            raise ValueError("a mixture needs `tokens`, its budget")
        if self.mix and self.documents is not None:
            raise ValueError("`documents` limits one source; a mixture has `tokens`")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Every text that it reads."""
        return tuple(each.source for each in self.mix) or ((self.source,) if self.source else ())

    @property
    def named(self) -> str:
        """The text in words."""
        return " + ".join(self.sources)


class Data(Table):
    """Which tokens to train on."""

    source: Line | None = None
    """`hf://OWNER/NAME`, `s3://`, `https://`, a file, a folder or a quoted pattern of token files."""
    dtype: Literal["uint16", "uint32"] | None = None
    """You vouch that files without a header hold ids of this type; without it, 16-bit ids are proven by their look."""
    start_token: Position = DataConfig.start_token
    """First token of the training window."""
    tokens: Tokens | None = DataConfig.tokens
    """Length of the training window in tokens; without it: all that is not held out for validation."""
    order: Literal["sequential", "shuffled"] = "sequential"
    """Order of the sequences in the first epoch; further epochs are always reshuffled."""
    tokenizer: Line | None = None
    """Decodes the samples: `bytes` or a tiktoken name; without it: that of [data.prepare], else `gpt2`."""
    validation: Validation | None = None
    """[data.validation]"""
    prepare: Prepare | None = None
    """[data.prepare]"""

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.source is None and self.prepare is None:
            raise ValueError("needs `source`, or a table [data.prepare] that makes the tokens")
        return self

    @property
    def decoder(self) -> str:
        """The tokenizer that turns samples into text."""
        return self.tokenizer or (self.prepare.tokenizer if self.prepare else DataConfig.tokenizer)


def lay_over(below: Mapping[str, object], above: Mapping[str, object], where: str) -> dict[str, object]:
    """`above` over `below`, as tables merge; of data.source and [data.prepare] the one of `above` stays. `where` names
    `above`. Raises UserError where it has both."""
    data = above.get("data")
    chosen = {"source", "prepare"} & data.keys() if isinstance(data, Mapping) else set()
    if len(chosen) == 2:
        raise UserError(
            f"{where}: it sets data.source and [data.prepare], and tokens come from one of them",
            "delete data.source to train on the prepared text, or the table [data.prepare] to train on data.source",
        )
    merged = merge(below, above)
    old = merged.get("data")
    if chosen and isinstance(old, Mapping):
        dropped = {"source": "prepare", "prepare": "source"}[chosen.pop()]
        merged["data"] = {key: value for key, value in old.items() if key != dropped}
    return merged
