"""What a preparation is asked for: the part of it that decides every byte, as dataset.json keeps it.

Example: `Request("books/*.txt", tokenizer="gpt2").to_json()`
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.corpus.documents import PYTHON_STDLIB
from trainer.corpus.encode import POLICIES, SKIP
from trainer.layout.token_layout import SAFETENSORS
from trainer.tokens.token_file import KINDS
from trainer.tokens.tokenizer import END_OF_TEXT

HOLD_OUT_EVERY = 20
"""One document in this many, chosen by its hash, is held out for validation."""
SHARD_TOKENS = 100_000_000
MOST_SHARDS = 99_999


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

    @staticmethod
    def of(options: argparse.Namespace) -> Request:
        """What the program was given."""
        return Request(
            options.named or " ".join(options.source) or "a mixture",
            options.tokenizer,
            options.separator,
            options.documents,
            options.bytes,
            options.column,
            options.format,
            options.shard_tokens,
            options.hold_out_every,
            options.invalid,
            options.revision,
            options.tokens,
            tuple(MixRequest.from_json(each) for each in options.mix),
            options.excluded_name or " ".join(map(str, options.exclude)) or None,
        )

    @staticmethod
    def from_json(values: Mapping[str, object]) -> Request:
        """What to_json() gave for a preparation without a mixture. Raises TypeError."""
        return Request(**values)  # type: ignore[arg-type]  # its own fields

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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments of `python -m trainer.prepare`."""
    parser = argparse.ArgumentParser(prog="python -m trainer.prepare", description="Turn text into token files.")
    parser.add_argument(
        "--source", action="append", default=[],
        help=f"{PYTHON_STDLIB}, or a file, a folder or a quoted glob of text, JSON Lines, CSV or Parquet; repeatable",
    )  # fmt: skip
    parser.add_argument("--mix", action="append", default=[], metavar="JSON", help="a source of a mixture, instead")
    parser.add_argument("--tokens", type=int, help="stop with the document that reaches so many tokens")
    parser.add_argument(
        "--exclude", type=Path, action="append", default=[], help="token files: leave out what is in them"
    )
    parser.add_argument("--excluded-name", help="their name in dataset.json")
    parser.add_argument("--named", help="name of the source in dataset.json (default: --source)")
    parser.add_argument("--revision", help="commit of a downloaded source, for dataset.json")
    parser.add_argument("--tokenizer", default="gpt2", help="bytes (no download) or a tiktoken name (default: gpt2)")
    parser.add_argument("--separator", default=END_OF_TEXT, help="special token after each document; '' for none")
    parser.add_argument("--column", default="text", help="JSON key, CSV or Parquet column of the text (default: text)")
    parser.add_argument("--documents", type=int, help="stop after this many documents")
    parser.add_argument("--bytes", type=int, help="stop before this many bytes of text")
    parser.add_argument("--format", choices=KINDS, default=SAFETENSORS, help="default: safetensors")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens per file (default: 100 million)")
    parser.add_argument(
        "--hold-out-every",
        type=int,
        default=HOLD_OUT_EVERY,
        help="hold out one document in N for validation; 0: none (default: 20)",
    )
    parser.add_argument(
        "--invalid",
        choices=tuple(POLICIES),
        default=SKIP,
        help="what to do with documents that are not UTF-8 (default: skip)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--task", metavar="JSON", help="make rows of examples; see trainer/tasks/prepare_examples.py")
    parser.add_argument("--to", type=Path, required=True, help="folder for the token files and dataset.json")
    parser.add_argument("--shard", type=_shard, metavar="I/N", help="make shard I of N alone, in the folder's `shards`")
    parser.add_argument("--cut", type=Path, metavar="DIR", help="copy the text of --shard there, and print its order")
    parser.add_argument("--order", metavar="JSON", help="what --cut printed: the sources are that shard's text")
    parser.add_argument("--merge", action="store_true", help="make the dataset of the folder's shards")
    options = parser.parse_args(arguments)
    if options.merge:
        return options
    if bool(options.source) == bool(options.mix):
        parser.error("give --source, or --mix")
    if min(options.shard_tokens, options.workers) < 1 or options.hold_out_every < 0:
        parser.error("--shard-tokens and --workers must be at least 1, --hold-out-every at least 0")
    return options


def _shard(text: str) -> tuple[int, int]:
    """`3/8`. Raises ValueError."""
    shard, of = (int(part) for part in text.split("/"))
    if not 1 <= shard <= of <= MOST_SHARDS:
        raise ValueError(text)
    return shard, of
