"""`python -m trainer.prepare`: text in, token files out, with a dataset.json that says what they are.

A recipe's `[data.prepare]` table becomes one call of this program. It writes `train.safetensors` and, where there are
documents enough to hold some out, `validation.safetensors` (one 1-D tensor `tokens` each), progress as JSON lines on
stdout, and dataset.json last: a folder without it is not prepared. It must not need the trainer's configuration.

Example, the quickstart's corpus (the Python standard library's own source files, no download)::

    python -m trainer.prepare --source python-stdlib --tokenizer bytes --to data/python-stdlib
    python -m trainer.prepare --source 'books/*.txt' --tokenizer gpt2 --to data/books
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import hashlib
import json
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tiktoken
from safetensors.numpy import save_file

from trainer.tokenizer import END_OF_TEXT, TokenizerError, open_tokenizer

DATASET = "dataset.json"
TRAIN = "train.safetensors"
VALIDATION = "validation.safetensors"
PYTHON_STDLIB = "python-stdlib"
STDLIB_BYTES = 6_000_000
"""The standard library is cut here: a few megabytes are plenty for a minute's training and are prepared in a second."""
STDLIB_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"})
HOLD_OUT_EVERY = 20
"""One document in this many, chosen by its hash, is held out for validation."""
FEWEST_DOCUMENTS_TO_SPLIT = 100
"""With fewer documents all go into the training file, and a run holds out its tail (as the recipe reference says)."""
PROGRESS_EVERY_S = 1.0


class PrepareError(ValueError):
    """The source cannot become a dataset: nothing there, nothing readable, or a kind that is not known."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for; kept in dataset.json, so that the same request on the same text is not done twice."""

    source: str
    tokenizer: str = "gpt2"
    separator: str = END_OF_TEXT
    """Special token after each document; empty: none."""
    documents: int | None = None
    bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Document:
    """One text with the hash that decides on which side of the split it falls."""

    text: str
    sha256: str


@dataclasses.dataclass
class Pile:
    """The tokens of one side of the split, while they are collected."""

    parts: list[np.ndarray] = dataclasses.field(default_factory=list)
    documents: int = 0
    tokens: int = 0

    def add(self, ids: np.ndarray) -> None:
        self.parts.append(ids)
        self.documents += 1
        self.tokens += len(ids)


def prepare(request: Request, to: Path) -> dict[str, object]:
    """Writes the dataset into folder `to` and returns the content of its dataset.json.

    The same text and request give the same bytes. Where dataset.json already answers this request, nothing is done.
    Raises PrepareError, TokenizerError, and OSError for a folder that cannot be written.
    """
    encoding = open_tokenizer(request.tokenizer)
    documents = read_documents(request)
    source_sha256 = hashlib.sha256("".join(document.sha256 for document in documents).encode()).hexdigest()
    existing = _existing(to, request, source_sha256)
    if existing is not None:
        _say("unchanged", to=str(to), tokens=existing["tokens"])
        return existing
    train, validation = _tokenize(documents, request, encoding)
    to.mkdir(parents=True, exist_ok=True)
    (to / DATASET).unlink(missing_ok=True)  # from here on the folder is unfinished, and says so
    (to / VALIDATION).unlink(missing_ok=True)
    files = {TRAIN: _write_tokens(to / TRAIN, train)}
    if validation.parts:
        files[VALIDATION] = _write_tokens(to / VALIDATION, validation)
    dataset: dict[str, object] = {
        "request": dataclasses.asdict(request),
        "source": request.source,
        "source_sha256": source_sha256,
        "tokenizer": request.tokenizer,
        "vocab_size": encoding.n_vocab,
        "dtype": str(_dtype(encoding)),
        "separator": {"text": request.separator, "ids": _separator(request, encoding), "policy": "after"},
        "documents": train.documents + validation.documents,
        "tokens": train.tokens + validation.tokens,
        "files": files,
    }
    _write_whole(to / DATASET, (json.dumps(dataset, indent=1) + "\n").encode())
    _say("prepared", to=str(to), tokens=dataset["tokens"], documents=dataset["documents"], files=files)
    return dataset


def read_documents(request: Request) -> list[Document]:
    """The documents of the source in a fixed order, cut at the request's number of documents or bytes of text."""
    documents: list[Document] = []
    size_bytes = 0
    limit_bytes = request.bytes or (STDLIB_BYTES if request.source == PYTHON_STDLIB else None)
    for text in _texts(_files(request.source)):
        encoded = text.encode()
        if request.documents is not None and len(documents) >= request.documents:
            break
        if limit_bytes is not None and size_bytes + len(encoded) > limit_bytes:
            break
        documents.append(Document(text, hashlib.sha256(encoded).hexdigest()))
        size_bytes += len(encoded)
    if not documents:
        raise PrepareError(
            f"{request.source} holds no text: every file is empty or no UTF-8, or the limit is too small"
        )
    return documents


def _files(source: str) -> list[Path]:
    """The source's text files, sorted: the order must not depend on the file system."""
    if source == PYTHON_STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        # By the hash of their names: what the size limit leaves is then a sample of the whole, not the letters a to m.
        found = (path for path in root.rglob("*.py") if not STDLIB_SKIPPED.intersection(path.relative_to(root).parts))
        return sorted(found, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())
    if "://" in source:
        raise PrepareError(f"{source} is not a local file: download it first, or name a file, a folder or a glob")
    path = Path(source)
    found = path.rglob("*.txt") if path.is_dir() else (Path(name) for name in glob.glob(source, recursive=True))
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise PrepareError(f"{source} names no text file; give a file, a folder with .txt files, or a glob in quotes")
    return files


def _texts(files: list[Path]) -> Iterator[str]:
    """Every document of these files; a text file may hold several, parted by the end-of-text mark."""
    for path in files:
        try:
            content = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            _say("skipped", file=str(path), reason=f"no UTF-8: {error.reason} at byte {error.start}")
            continue
        # A Python file is one document: a mark in it is source text, not a border between documents.
        documents = [content] if path.suffix == ".py" else content.split(END_OF_TEXT)
        yield from (text for text in documents if text.strip())


def _tokenize(documents: list[Document], request: Request, encoding: tiktoken.Encoding) -> tuple[Pile, Pile]:
    train, validation = Pile(), Pile()
    mark = _separator(request, encoding)
    split = len(documents) >= FEWEST_DOCUMENTS_TO_SPLIT
    said = time.monotonic()
    for number, document in enumerate(documents, start=1):
        ids = np.array([*encoding.encode_ordinary(document.text), *mark], dtype=_dtype(encoding))
        held_out = split and int(document.sha256, 16) % HOLD_OUT_EVERY == 0
        (validation if held_out else train).add(ids)
        if time.monotonic() - said >= PROGRESS_EVERY_S:
            said = time.monotonic()
            _say("progress", documents=number, of=len(documents), tokens=train.tokens + validation.tokens)
    return train, validation


def _separator(request: Request, encoding: tiktoken.Encoding) -> list[int]:
    if not request.separator:
        return []
    if request.separator not in encoding.special_tokens_set:
        known = ", ".join(sorted(encoding.special_tokens_set))
        raise PrepareError(f"{request.separator!r} is no special token of {request.tokenizer}; known: {known}")
    return [encoding.encode_single_token(request.separator)]


def _dtype(encoding: tiktoken.Encoding) -> np.dtype:
    return np.dtype(np.uint16 if encoding.n_vocab <= 2**16 else np.uint32)


def _write_tokens(path: Path, pile: Pile) -> dict[str, int | str]:
    temporary = path.with_name(f".tmp-{path.name}")
    save_file({"tokens": np.concatenate(pile.parts)}, temporary)
    _settle(temporary, path)
    return {
        "tokens": pile.tokens,
        "documents": pile.documents,
        "size_bytes": path.stat().st_size,
        "sha256": _file_sha256(path),
    }


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(content)
    _settle(temporary, path)


def _settle(temporary: Path, path: Path) -> None:
    """Moves a finished file under its name, so that a name never holds half a file, not even after a power cut."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _existing(to: Path, request: Request, source_sha256: str) -> dict[str, object] | None:
    """The dataset.json that already answers this request, with every file it lists whole on disk; else None."""
    try:
        dataset: dict[str, object] = json.loads((to / DATASET).read_text())
        same = dataset["request"] == dataclasses.asdict(request) and dataset["source_sha256"] == source_sha256
        files = dataset["files"]
        whole = isinstance(files, dict) and all(_file_sha256(to / name) == files[name]["sha256"] for name in files)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, torn or foreign: prepare anew
    return dataset if same and whole else None


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _say(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.prepare", description="Turn text into token files.")
    parser.add_argument("--source", required=True, help=f"{PYTHON_STDLIB}, or a text file, a folder or a quoted glob")
    parser.add_argument("--tokenizer", default="gpt2", help="bytes (no download) or a tiktoken name (default: gpt2)")
    parser.add_argument("--separator", default=END_OF_TEXT, help="special token after each document; '' for none")
    parser.add_argument("--documents", type=int, help="stop after this many documents")
    parser.add_argument("--bytes", type=int, help="stop before this many bytes of text")
    parser.add_argument("--to", type=Path, required=True, help="folder for the token files and dataset.json")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 when the folder holds the dataset, 1 with the reason on stderr."""
    asked = _parse(arguments)
    request = Request(asked.source, asked.tokenizer, asked.separator, asked.documents, asked.bytes)
    try:
        prepare(request, asked.to)
    except (PrepareError, TokenizerError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
