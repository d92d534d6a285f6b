"""Signatures and help of `gptctl data`: text to token files, and token files looked at, turned, checked and sent.

app.py says how they work, and registers them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.failures import explained

HELP = """Make token files from text; look at, convert, verify and send them.

Start with: gptctl data prepare book.txt --tokenizer bytes --to data/book, then a recipe with data.source = "data/book".
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


Kind = Annotated[Format, typer.Option("--format", help="Kind of the token files: what the trainer reads, all three.")]
Folder = Annotated[Path, typer.Option("--to", metavar="DIR", help="Where to put them.")]
Tokens = Annotated[Path, typer.Argument(metavar="PATH", help="A token file, or a folder with train* and val*.")]


@data.command()
@explained
def prepare(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Text, JSON Lines or Parquet: files, folders, quoted globs, hf://OWNER/NAME; or python-stdlib.",
        ),
    ],
    *,
    to: Folder,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", help="gpt2, r50k_base, cl100k_base, or bytes, which needs no download.")
    ] = "gpt2",
    kind: Kind = Format.SAFETENSORS,
    column: Annotated[
        str, typer.Option("--column", metavar="NAME", help="JSON key or Parquet column that holds the text.")
    ] = "text",
    separator: Annotated[
        str, typer.Option("--separator", metavar="MARK", help="Special token after each document; '' for none.")
    ] = "<|endoftext|>",
    invalid: Annotated[
        Invalid, typer.Option("--invalid", help="Documents that are not UTF-8; they are counted in any case.")
    ] = Invalid.SKIP,
    documents: Annotated[
        int | None, typer.Option("--documents", metavar="N", min=1, help="Only the first N documents.")
    ] = None,
    hold_out_every: Annotated[
        int, typer.Option("--hold-out-every", metavar="N", min=0, help="One document in N is for validation; 0: none.")
    ] = 20,
    shard_tokens: Annotated[
        int, typer.Option("--shard-tokens", metavar="N", min=1, help="Tokens per file.")
    ] = 100_000_000,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Processes. Default: one per core.")
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Turn text into token files and a dataset.json.

    Any size of input in little memory. Killed, it goes on with the same command; done twice, it does nothing. Which
    documents are for validation follows from their text alone. The same text gives the same bytes on every machine.
    """
    from orchestrator.cli.data import prepare as it

    wish = it.Wish(
        source, tokenizer, kind, column, separator, documents, hold_out_every, shard_tokens, workers, invalid
    )  # fmt: skip
    return it.prepare(wish, to, as_json=as_json)


@data.command()
@explained
def inspect(
    path: Tokens,
    *,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="To decode with. Default: as dataset.json says.")
    ] = None,
    head: Annotated[int, typer.Option("--head", metavar="N", min=0, help="Tokens to show as text.")] = 64,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what token files hold, and what is wrong with them.

    Counts, type, the beginning as text, how often which ids occur. Exit 2 when there are problems: ids beyond the
    vocabulary, truncated files, holes.
    """
    from orchestrator.cli.data import inspect as it

    return it.inspect(path, tokenizer, head, as_json=as_json)


@data.command()
@explained
def convert(
    path: Tokens,
    *,
    kind: Kind,
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="A folder; for one file also a file.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of the same name.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Write token files as another kind, id for id."""
    from orchestrator.cli.data import inspect as it

    return it.convert(path, kind, to, overwrite=overwrite, as_json=as_json)


@data.command()
@explained
def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with dataset.json.")],
    *,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Compare a folder's files with its dataset.json, byte for byte.

    Names each damaged block of 16 MiB. Exit 4 when something differs.
    """
    from orchestrator.cli.data import inspect as it

    return it.verify(path, as_json=as_json)


@data.command()
@explained
def push(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with dataset.json.")],
    to: Annotated[str, typer.Argument(metavar="s3://BUCKET/PREFIX", help="Where to.")],
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another dataset there.")] = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Send a prepared dataset to a bucket, verified on both sides.

    What is there already is not sent again. Credentials and endpoint as the AWS command line has them.
    """
    from orchestrator.cli.data import push as it

    return it.push(path, to, overwrite=overwrite, as_json=as_json)


def register(add: Callable[[typer.Typer], None]) -> None:
    """Adds the group to the app."""
    add(data)
