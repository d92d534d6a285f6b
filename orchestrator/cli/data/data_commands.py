"""Signatures and help of `gptctl data`: prepare, merge, inspect, overlap and the rest. app.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.failures import explained

HELP = """Prepare, merge, inspect, verify and push token files.

Start with: gptctl data prepare book.txt --tokenizer bytes --to data/book. In a recipe, set data.source = "data/book".
"""

data = typer.Typer(help=HELP, rich_markup_mode=None, no_args_is_help=True)


class Invalid(StrEnum):
    """What happens to a document that is not UTF-8."""

    SKIP = "skip"
    REPLACE = "replace"


class Format(StrEnum):
    """Kinds of token files."""

    SAFETENSORS = "safetensors"
    LLMC = "llmc"
    NANOGPT = "nanogpt"


class Dtype(StrEnum):
    """Types of ids that a headerless file may hold."""

    UINT16 = "uint16"
    UINT32 = "uint32"


Vouched = Annotated[
    Dtype | None, typer.Option("--dtype", help="Vouch that files without a header hold ids of this type.")
]
Kind = Annotated[Format, typer.Option("--format", help="Kind of file.")]
Folder = Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write to.")]
Tokens = Annotated[Path, typer.Argument(metavar="PATH", help="A token file, or a folder of them.")]

Texts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE...",
        help="Text, JSON Lines, CSV or Parquet: files, folders, quoted globs, hf://OWNER/NAME; or python-stdlib.",
    ),
]
Column = Annotated[
    str,
    typer.Option("--column", metavar="NAME", help="The JSON key, or the CSV or Parquet column, that holds the text."),
]
HoldOut = Annotated[
    int,
    typer.Option("--hold-out-every", metavar="N", min=0, help="Hold out one document in N for validation; 0: none."),
]
Mix = Annotated[
    list[str] | None,
    typer.Option("--mix", metavar="SOURCE=WEIGHT", help="Instead of SOURCE; repeatable."),
]
Budget = Annotated[int | None, typer.Option("--tokens", metavar="N", min=1, help="Stop where a document reaches N.")]
Exclude = Annotated[
    str | None,
    typer.Option("--exclude", metavar="TOKENS", help="Leave out documents of these tokens."),
]


@data.command()
@explained
def prepare(
    source: Texts = None,
    *,
    to: Folder,
    mix: Mix = None,
    tokens: Budget = None,
    exclude: Exclude = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="gpt2, r50k_base, cl100k_base, or bytes (no download).")
    ] = "gpt2",
    kind: Kind = Format.SAFETENSORS,
    column: Column = "text",
    separator: Annotated[
        str, typer.Option("--separator", metavar="MARK", help="The special token after each document; '' for none.")
    ] = "<|endoftext|>",
    invalid: Annotated[
        Invalid,
        typer.Option("--invalid", help="Of what is not UTF-8."),
    ] = Invalid.SKIP,
    documents: Annotated[
        int | None, typer.Option("--documents", metavar="N", min=1, help="Read only the first N documents.")
    ] = None,
    hold_out_every: HoldOut = 20,
    shard_tokens: Annotated[
        int, typer.Option("--shard-tokens", metavar="N", min=1, help="Tokens per file.")
    ] = 100_000_000,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Processes. Default: all cores.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only shard I of N; then: data merge."),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option("--hosts", metavar="A,B", help="Prepare on these hosts, and merge here."),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option("--shards", metavar="N", min=1, max=99_999, help="With --hosts: how many."),
    ] = None,
    inventory: Annotated[Path | None, typer.Option("--inventory", hidden=True)] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Turn text into token files and a dataset.json.

    Handles input of any size in little memory. If it is killed, the same command continues; run again, it changes
    nothing. A document's text alone decides whether it is for validation. The same text gives the same bytes on every
    machine.
    """
    from orchestrator.cli.data import prepare as it

    wish = it.Wish(
        source or [], mix or [], tokens, exclude, tokenizer, kind, column, separator, documents, hold_out_every,
        shard_tokens, workers, invalid, shard, [name for name in (hosts or "").split(",") if name], shards,
    )  # fmt: skip
    return it.prepare(wish, to, inventory, as_json=as_json)


@data.command()
@explained
def merge(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that --to named for each shard.")],
    *,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Merge the shards of a preparation into its token files and dataset.json.

    Names each shard that is missing, broken or of another preparation.
    """
    from orchestrator.cli.data import prepare as it

    return it.merge(path, as_json=as_json)


@data.command()
@explained
def inspect(
    path: Tokens,
    *,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Decode with this tokenizer. Default: the one in dataset.json.")
    ] = None,
    head: Annotated[int, typer.Option("--head", metavar="N", min=0, help="Show the first N tokens as text.")] = 64,
    dtype: Vouched = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what token files hold and what is wrong with them.

    Shows counts, type, the beginning as text, and how often each id occurs. Exits with 2 on problems: ids beyond the
    vocabulary, truncated files, holes.
    """
    from orchestrator.cli.data import inspect as it

    return it.inspect(path, tokenizer, head, dtype, as_json=as_json)


@data.command()
@explained
def convert(
    path: Tokens,
    *,
    kind: Kind,
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="A folder, or a file if PATH is a file.")],
    dtype: Vouched = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of the same name.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Convert token files to another format, id for id."""
    from orchestrator.cli.data import inspect as it

    return it.convert(path, kind, to, dtype, overwrite=overwrite, as_json=as_json)


@data.command()
@explained
def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with dataset.json.")],
    *,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Compare a folder's files with its dataset.json, byte for byte.

    Names each damaged block of 16 MiB. Exits with 4 if anything differs.
    """
    from orchestrator.cli.data import inspect as it

    return it.verify(path, as_json=as_json)


@data.command()
@explained
def overlap(
    a: Annotated[
        str, typer.Argument(metavar="A", help="Token files: a file, a folder, hf://OWNER/NAME, s3://, https://.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, such as what you test on.")],
    *,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Whose end-of-text id parts documents. Default: dataset.json's.")
    ] = None,
    part: Annotated[str | None, typer.Option("--slice", metavar="START+TOKENS", help="Only this part of B.")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Count the documents that two datasets share.

    Compares them by their first 1,024 ids, so both must be of one tokenizer; the kind of file does not matter. plan,
    compare and the model card then say what came out.
    """
    from orchestrator.cli.data import overlap as it

    return it.overlap(a, b, tokenizer, part, as_json=as_json)


@data.command()
@explained
def push(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with dataset.json.")],
    to: Annotated[str, typer.Argument(metavar="s3://BUCKET/PREFIX", help="Where to send it.")],
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a different dataset there.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Push a prepared dataset to a bucket, verified on both sides.

    Skips files that are already there. Reads credentials and endpoint as the AWS command line does.
    """
    from orchestrator.cli.data import push as it

    return it.push(path, to, overwrite=overwrite, as_json=as_json)


def register(add: Callable[[typer.Typer], None]) -> None:
    """Adds the group to the app."""
    add(data)
