"""What a run's data are called where others may read it: without private folders, passwords and keys.

shown_source("/home/ann/thesis/corpus.txt")                     # corpus.txt
shown_source("https://bucket.example/tokens.bin?X-Amz-Signature=1")   # https://bucket.example/tokens.bin
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from orchestrator.ledger.records import RecipeTables

T = TypeVar("T")
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
QUOTED = re.compile(r"""(['"`])(?:~|/)[^'"`\n]*/(?=[^'"`/\n]+\1)""")
"""The same of a path in quotes, which may have blanks."""
PATHS = ("/", "~/", "file:/")
Places = Mapping[str, str]
"""Paths of this computer and what they are called where others read it, the longest path first."""


def without_folders(text: str) -> str:
    """The text as anyone may read it: of `/home/ann/thesis/corpus.txt` stays `corpus.txt`."""
    return FOLDERS.sub("", QUOTED.sub(r"\1", text))


def private_places(recipe: RecipeTables, home: Path | None = None) -> Places:
    """Paths that a run's texts may have, with blanks too: your home folder, GPTCTL_HOME, and those of its recipe."""
    named = {text: shown_source(text) for text in _strings(recipe) if text.startswith(PATHS)}
    named |= {str(Path(text.removeprefix("file://")).expanduser()): name for text, name in named.items()}
    folders = {str(Path.home()): "~", **({str(home): "GPTCTL_HOME"} if home else {})}
    found = {path: name for path, name in {**folders, **named}.items() if len(path) > 1}
    return dict(sorted(found.items(), key=lambda each: len(each[0]), reverse=True))


def hidden(value: T, places: Places) -> T:
    """The same value, with the names of the places in all its texts."""
    return _in_all(value, partial(_renamed, places))  # type: ignore[no-any-return]


def _renamed(places: Places, text: str) -> str:
    for path, name in places.items():
        if path in text:
            text = re.sub(rf"(?<![\w~]){re.escape(path)}(?![\w-])", name.replace("\\", r"\\"), text)
    return text


def _in_all(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _in_all(each, change) for key, each in value.items()}
    return [_in_all(each, change) for each in value] if isinstance(value, list | tuple) else value


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


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
