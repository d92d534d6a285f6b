"""What a run's data are called where others may read it: without private folders, passwords and keys.

shown_source("/home/ann/thesis/corpus.txt")                     # corpus.txt
shown_source("https://bucket.example/tokens.bin?X-Amz-Signature=1")   # https://bucket.example/tokens.bin
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from urllib.parse import urlsplit, urlunsplit

from orchestrator.ledger.records import RecipeTables

LOCAL_SCHEMES = ("", "file", "path")
WEB = ("http", "https")
WINDOW = ("start_token", "tokens", "order")
"""Keys of [data] that decide which tokens of a source a step reads."""


def shown_source(source: str) -> str:
    """The source as anyone may read it."""
    parts = urlsplit(source) if "://" in source else None
    if parts is None or parts.scheme in LOCAL_SCHEMES:
        return PurePath(source).name
    if parts.scheme not in WEB:  # there, a question mark is part of a pattern
        return source
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


FOLDERS = re.compile(r"(?<![\w:/.~])(?:~|/(?:[\w.@+-]+))(?:/[\w.@+-]+)*/(?=[\w.@+-])")
"""Of a path on a disk, everything before its last part; the path of a web address is none."""


def without_folders(text: str) -> str:
    """The text as anyone may read it: of `/home/ann/thesis/corpus.txt` stays `corpus.txt`."""
    return FOLDERS.sub("", text)


def source_name(recipe: RecipeTables) -> str:
    """Where the data came from, as anyone may read it."""
    table = recipe.get("data") or {}
    prepare = table.get("prepare") or {}
    if prepare.get("mix"):
        return " + ".join(f"{each['weight']:g} x {shown_source(each['source'])}" for each in prepare["mix"])
    source = str(table.get("source") or prepare.get("source") or "")
    if source == "python-stdlib":
        return "the source files of Python's standard library"
    return shown_source(source)


def data_read(recipe: RecipeTables) -> dict[str, object]:
    """What decides which tokens are read, as anyone may read it: a checkpoint's meta.json carries it."""
    table = recipe.get("data") or {}
    return {"source": source_name(recipe), **{key: table.get(key) for key in WINDOW}}


def data_differences(before: Mapping[str, object], recipe: RecipeTables) -> list[str]:
    """`data.source was A, is B`, for each key that differs; nothing where `before` is unknown."""
    now = data_read(recipe)
    return [f"data.{key} was {before[key]}, is {now[key]}" for key in now if key in before and before[key] != now[key]]
