"""Examples in, rows of tokens out: what `trainer.prepare --task` does, with a dataset.json that counts what it dropped.

One example in twenty, by its hash, is for validation, as documents are. An example that does not fit a row is dropped
and counted, and so is an empty response or text, by name. The same examples and request give the same bytes.

Example::

    request = ExamplesRequest.from_json('{"kind": "classify", "labels": ["ham", "spam"], "length": 128}')
    prepare_examples(request, [Path("sms.tsv")], Path("data/sms"), tokenizer="gpt2", named="sms.tsv")
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from trainer.config.task_config import CLASSIFY, INSTRUCT
from trainer.corpus.documents import find_files
from trainer.corpus.encode import is_held_out
from trainer.corpus.parquet import CorpusError
from trainer.corpus.request import HOLD_OUT_EVERY
from trainer.layout.token_layout import EXAMPLES, SAFETENSORS, safetensors_header
from trainer.progress import print_event
from trainer.prompt_template import TemplateError, check_template, prompt_of
from trainer.tasks.example_files import Example, ExamplesError, read_examples
from trainer.tokens.digests import DATASET, Digest, FileEntry
from trainer.tokens.example_rows import DTYPE, Row, example_row
from trainer.tokens.token_writers import write_atomically
from trainer.tokens.tokenizer import TokenizerError, open_tokenizer

NAMED_EMPTY = 5
"""Empty examples that are named; the others are only counted."""


@dataclass(frozen=True)
class ExamplesRequest:
    """What decides every byte beside the examples. `length`: ids of a row, the model's context."""

    kind: str
    length: int
    prompt: str = "alpaca"
    labels: tuple[str, ...] = ()
    text_column: str = "text"
    label_column: str = "label"
    examples: int | None = None
    """At most this many, in order."""

    @staticmethod
    def from_json(text: str) -> ExamplesRequest:
        """The value of --task. Raises ValueError, TypeError."""
        value = json.loads(text)
        return ExamplesRequest(**{**value, "labels": tuple(value.get("labels", ()))})


@dataclass
class Dropped:
    """What is not in the dataset."""

    too_long: int = 0
    empty: int = 0
    named: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Encoded:
    """One example as a row; `label` of a classifier."""

    row: Row
    sha256: str
    label: str


def prepare_task(options: argparse.Namespace) -> int:
    """`trainer.prepare --task`: returns 0, or 1 with the reason on stderr."""
    try:
        request, paths = ExamplesRequest.from_json(options.task), [file.path for file in find_files(options.source)]
        named = options.named or " ".join(options.source)
        prepare_examples(request, paths, options.to, tokenizer=options.tokenizer, named=named)
    except (CorpusError, ExamplesError, TemplateError, TokenizerError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    return 0


def prepare_examples(
    request: ExamplesRequest, paths: Sequence[Path], to: Path, *, tokenizer: str, named: str
) -> dict[str, Any]:
    """Writes train and validation rows and dataset.json, the last; returns its content. Raises ExamplesError,
    TokenizerError, OSError."""
    encoding, dropped = open_tokenizer(tokenizer), Dropped()
    rows = [row for path in paths for row in _encoded(request, path, encoding, dropped)][: request.examples]
    held_out = _held_out(rows)
    sides = {"train": [row for row in rows if row.sha256 not in held_out]}
    sides["validation"] = [row for row in rows if row.sha256 in held_out]
    if not sides["train"]:
        raise ExamplesError(f"{named}: no example is left to train on: {_words(dropped, request)}")
    counts = _check_classes(request, sides, named) if request.kind == CLASSIFY else {}
    to.mkdir(parents=True, exist_ok=True)
    (to / DATASET).unlink(missing_ok=True)
    files = {
        f"{name}.safetensors": _write(to / f"{name}.safetensors", side, encoding.eot_token)
        for name, side in sides.items()
        if side
    }
    dataset = {
        "request": {**vars(request), "labels": list(request.labels), "tokenizer": tokenizer},
        "source": named,
        "source_sha256": hashlib.sha256("".join(row.sha256 for row in rows).encode()).hexdigest(),
        "tokenizer": tokenizer,
        "vocab_size": encoding.n_vocab,
        "format": SAFETENSORS,
        "dtype": DTYPE,
        "split": {
            "by": "sha256 of the example",
            "held_out_every": HOLD_OUT_EVERY,
            "held_out": len(sides["validation"]),
        },
        "examples": {
            "kind": request.kind,
            "row": request.length,
            "too_long": dropped.too_long,
            "empty": dropped.empty,
            "empty_named": dropped.named,
            "labels": counts,
        },
        "documents": len(rows),
        "tokens": sum(entry["tokens"] for entry in files.values()),
        "files": files,
    }
    write_atomically(to / DATASET, (json.dumps(dataset, indent=1) + "\n").encode())
    print_event("prepared", to=str(to), tokens=dataset["tokens"], documents=len(rows), files=files)
    return dataset


def _words(dropped: Dropped, request: ExamplesRequest) -> str:
    return f"{dropped.too_long} are longer than {request.length} tokens, {dropped.empty} are empty"


def _encoded(request: ExamplesRequest, path: Path, encoding: tiktoken.Encoding, dropped: Dropped) -> Iterator[Encoded]:
    instruct = request.kind == INSTRUCT
    needed = ("instruction", "output") if instruct else (request.text_column, request.label_column)
    if instruct:
        check_template(request.prompt)
    for example in read_examples(path, needed, ("input",) if instruct else ()):
        if not example.texts[needed[1] if instruct else needed[0]].strip():
            dropped.empty += 1
            dropped.named += [example.where] if len(dropped.named) < NAMED_EMPTY else []
            continue
        seen, counted = (_instruct if instruct else _classify)(request, example, encoding)
        if len(seen) + len(counted) > request.length:
            dropped.too_long += 1
            continue
        row = example_row(seen, counted, length=request.length, filling=encoding.eot_token)
        label = "" if instruct else example.texts[request.label_column]
        digest = hashlib.sha256(json.dumps(example.texts, sort_keys=True).encode()).hexdigest()
        yield Encoded(row, digest, label)


def _instruct(request: ExamplesRequest, example: Example, encoding: tiktoken.Encoding) -> tuple[list[int], list[int]]:
    """Ids that are only seen (the prompt), and those that the loss counts: the response and its end."""
    texts = example.texts
    prompt = prompt_of(request.prompt, texts["instruction"], texts["input"])
    response = encoding.encode_ordinary(texts["output"])
    return encoding.encode_ordinary(prompt), [*response, encoding.eot_token]


def _classify(request: ExamplesRequest, example: Example, encoding: tiktoken.Encoding) -> tuple[list[int], list[int]]:
    """The text, and its class in place of the token after it."""
    label = example.texts[request.label_column]
    if label not in request.labels:
        known = ", ".join(request.labels)
        raise ExamplesError(f"{example.where}: its class {label!r} is not one of task.labels: {known}")
    return encoding.encode_ordinary(example.texts[request.text_column]), [request.labels.index(label)]


def _held_out(rows: Sequence[Encoded]) -> frozenset[str]:
    """By hash; of several examples at least one."""
    chosen = frozenset(row.sha256 for row in rows if is_held_out(row.sha256, HOLD_OUT_EVERY))
    return chosen if chosen or len({row.sha256 for row in rows}) < 2 else frozenset([min(row.sha256 for row in rows)])


def _check_classes(request: ExamplesRequest, sides: dict[str, list[Encoded]], named: str) -> dict[str, int]:
    """How many training examples each class has. Raises ExamplesError for one that has none."""
    counts, held_out = (Counter(row.label for row in side) for side in sides.values())
    for label in request.labels:
        if not counts[label]:
            where = f"all {held_out[label]} of its examples are held out" if held_out[label] else "it has no example"
            raise ExamplesError(
                f"{named}: the class {label!r} would never be seen in training: {where}. "
                "Add examples of it, or remove it from task.labels"
            )
    return {label: counts[label] for label in request.labels}


def _write(path: Path, rows: Sequence[Encoded], filling: int) -> FileEntry:
    """The rows and one id of filling, the target of their last one; by temporary name, fsync and rename."""
    ids = np.concatenate([*(row.row for row in rows), np.array([filling], np.int32)])
    content = safetensors_header(DTYPE, len(ids), EXAMPLES) + ids.astype("<i4").tobytes()
    digest = Digest()
    digest.update(content)
    write_atomically(path, content)
    return FileEntry(tokens=len(ids), documents=len(rows), **digest.entry())
