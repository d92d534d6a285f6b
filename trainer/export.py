"""`python -m trainer.export`: a checkpoint as a folder that others can load, written whole or not at all.

`hf` is a native GPT2LMHeadModel with its tokenizer, for plain AutoModelForCausalLM and pipelines, without custom code;
`safetensors` is the trainer's own tensors with their shape beside them. It needs numpy and safetensors, and tiktoken
where the tokenizer is one of tiktoken's; no torch. It must not change the checkpoint, nor a folder that is not its own.

Example::

    python -m trainer.export runs/quickstart --format hf --to exports/quickstart
    python -m trainer.export runs/quickstart/checkpoints/step-000800 --format safetensors --to plain
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypedDict

from safetensors import SafetensorError, safe_open

from trainer.arithmetic import parameter_count
from trainer.checkpoints.manifest import (
    CheckpointError,
    checkpoint_folder,
    read_meta,
    sha256_of,
    tokenizer_name,
    verify,
)
from trainer.contract import META_FILE, MODEL_FILE, TEMPORARY_PREFIX, CheckpointMeta, ManifestEntry, ModelConfig
from trainer.model.hugging_face import NotExpressible, Stored, as_gpt2, gpt2_config, missing_biases, read_shape
from trainer.model.tokenizer_files import Vocabulary, VocabularyError, open_vocabulary, tokenizer_files
from trainer.tokens.tensor_file import write_tensors

RECORD = "gptctl.json"
"""In every export: where it comes from, and the files that are its own. A folder without it is somebody else's."""
NO_TOKENIZER = "none"
HEADROOM_BYTES = 32_000_000
"""For the tokenizer, the card and the file system's own needs, beyond the weights."""


class ModelFacts(TypedDict, total=False):
    """What gptctl.json says about the exported model. `safetensors` exports omit the model and its tokenizer."""

    model: dict[str, object]
    tokenizer: str | None
    parameters: int
    zero_biases: int
    """Biases that GPT-2 has and this model has not, exported as zeros."""


class ExportRecord(TypedDict, total=False):
    """gptctl.json: where the export comes from, what it is, and its files."""

    format: str
    step: int | None
    checkpoint_sha256: str
    model: dict[str, object]
    tokenizer: str | None
    parameters: int
    zero_biases: int
    files: dict[str, ManifestEntry]


class Tokenizer(NamedTuple):
    """None and nothing where the model is exported without one."""

    vocabulary: Vocabulary | None
    files: Mapping[str, str]


class ExportError(ValueError):
    """What cannot be exported, or not to there. Says what is in the way."""


def export(asked: argparse.Namespace) -> ExportRecord:
    """Writes the folder and returns its gptctl.json."""
    source = checkpoint_folder(asked.checkpoint)
    to = asked.to.absolute()
    put_back(to)
    refuse_foreign(to)
    with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter free for it
        tokenizer = beside.submit(made_tokenizer, source, asked)
        own = verify(source, only=(MODEL_FILE, META_FILE))
    meta = read_meta(source)
    refuse_full_disk(to, own[MODEL_FILE]["size_bytes"])
    fresh = fresh_of(to)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        facts, weights = (
            write_hf(source, meta, tokenizer.result(), fresh) if asked.format == "hf" else write_plain(source, fresh)
        )
        for companion in sorted(asked.companions.iterdir()) if asked.companions else ():
            shutil.copyfile(companion, fresh / companion.name)
        record: ExportRecord = {
            "format": asked.format,
            "step": meta.get("step"),
            "checkpoint_sha256": own[MODEL_FILE]["sha256"],
            **facts,
            "files": {
                path.name: weights if path.name == MODEL_FILE else _entry(path) for path in sorted(fresh.iterdir())
            },
        }
        write_text(fresh / RECORD, json.dumps(record, indent=1) + "\n")
        put_in_place(fresh, to)
    finally:
        put_back(to)
        shutil.rmtree(fresh, ignore_errors=True)
    return record


def _entry(path: Path) -> ManifestEntry:
    with path.open("rb") as file:
        return {"size_bytes": path.stat().st_size, "sha256": sha256_of(file)}


def made_tokenizer(source: Path, asked: argparse.Namespace) -> Tokenizer:
    """The vocabulary and its files' texts; nothing for a format without. Raises NotExpressible, ExportError."""
    if asked.format != "hf":
        return Tokenizer(None, {})
    meta = read_meta(source)
    model = read_shape(meta.get("model"))
    vocabulary = vocabulary_of(tokenizer_name(meta, asked.tokenizer), model)
    return Tokenizer(vocabulary, tokenizer_files(vocabulary, model.context_length) if vocabulary else {})


def write_hf(source: Path, meta: CheckpointMeta, tokenizer: Tokenizer, to: Path) -> tuple[ModelFacts, ManifestEntry]:
    """config.json, generation_config.json, model.safetensors and the tokenizer; returns what they are, and the weights'
    entry. Raises NotExpressible."""
    model, vocabulary = read_shape(meta.get("model")), tokenizer.vocabulary
    end_of_text = vocabulary.end_of_text if vocabulary else None
    with safe_open(source / MODEL_FILE, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        found = {name: Stored(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
        planned = as_gpt2(model, found, file.get_tensor)
        weights = write_tensors(to / MODEL_FILE, planned, {"format": "pt"})  # the word that transformers looks for
    marks = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    write_json(to / "config.json", gpt2_config(model, end_of_text))
    write_json(to / "generation_config.json", {"max_length": model.context_length, **marks})
    for name, text in tokenizer.files.items():
        write_text(to / name, text)
    facts: ModelFacts = {
        "model": dataclasses.asdict(model),
        "tokenizer": vocabulary.name if vocabulary else None,
        "parameters": parameter_count(model),
        "zero_biases": sum(missing_biases(model).values()),
    }
    return facts, weights


def vocabulary_of(name: str, model: ModelConfig) -> Vocabulary | None:
    """The tokenizer's vocabulary, or None for `none`. Raises ExportError where it is larger than the model's."""
    if name == NO_TOKENIZER:
        return None
    vocabulary = open_vocabulary(name)
    highest = max(vocabulary.ranks.values())
    if highest >= model.vocab_size:
        raise ExportError(
            f"tokenizer {name} has ids up to {highest}, but the model knows {model.vocab_size}: "
            f"name the right one with --tokenizer, or --tokenizer {NO_TOKENIZER}"
        )
    return vocabulary.within(model.vocab_size)


def write_plain(source: Path, to: Path) -> tuple[ModelFacts, ManifestEntry]:
    """The checkpoint's weights as they are, and what says their shape; returns the same as write_hf()."""
    shutil.copyfile(source / MODEL_FILE, to / MODEL_FILE)
    shutil.copyfile(source / META_FILE, to / META_FILE)
    with safe_open(to / MODEL_FILE, framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a dict
    return {"parameters": sum(math.prod(shape) for shape in shapes), "zero_biases": 0}, _entry(to / MODEL_FILE)


def refuse_foreign(to: Path) -> None:
    """An export replaces an older export as a whole, and nothing else. Raises ExportError."""
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise ExportError(f"{to} is there already and is no folder: choose another --to")
    names = {path.name for path in to.iterdir()} if to.is_dir() else set()
    if not names:
        return
    if RECORD not in names:
        raise ExportError(f"{to} is not empty and not an export ({_few(names)}): choose another --to")
    try:
        known = json.loads((to / RECORD).read_text(encoding="utf-8"))["files"].keys()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(f"{to}: its {RECORD} cannot be read: choose another --to") from error
    strange = names - known - {RECORD}
    if strange:
        raise ExportError(
            f"{to} holds an export and files that are not part of it ({_few(strange)}): choose another --to"
        )


def _few(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def refuse_full_disk(to: Path, weights_bytes: int) -> None:
    """Before the first byte. Raises ExportError with both figures."""
    existing = next(folder for folder in to.parents if folder.exists())
    need, free = weights_bytes + HEADROOM_BYTES, shutil.disk_usage(existing).free
    if free < need:
        raise ExportError(f"{to} needs {need / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free")


def fresh_of(to: Path) -> Path:
    """Where an export is made; what lies there is nobody's."""
    return to.with_name(TEMPORARY_PREFIX + to.name)


def aside_of(to: Path) -> Path:
    """Where an older export waits between the two renames: there while `to` is not, and whole."""
    return to.with_name(f"{TEMPORARY_PREFIX}{to.name}-replaced")


def put_in_place(fresh: Path, to: Path) -> None:
    """By rename, the older export aside first. It is deleted under the name `fresh`, so that a part of it never lies
    where put_back() looks."""
    if to.exists():
        to.rename(aside_of(to))
    fresh.rename(to)
    if aside_of(to).exists():
        aside_of(to).rename(fresh)


def put_back(to: Path) -> None:
    """The older export of one that died between the two renames; beside a newer one it is no longer wanted."""
    aside = aside_of(to)
    if not aside.exists():
        return
    if not to.exists():
        aside.rename(to)
    else:
        shutil.rmtree(fresh_of(to), ignore_errors=True)
        aside.rename(fresh_of(to))


def write_json(path: Path, value: object) -> None:
    """Indented, in UTF-8."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8 with plain line ends, whatever the system's."""
    path.write_text(text, encoding="utf-8", newline="\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.export", description="A checkpoint that others can load.")
    parser.add_argument("checkpoint", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run (its best checkpoint) or one")
    parser.add_argument("--format", choices=("hf", "safetensors"), default="hf", help="default: hf")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="a folder that is empty, new, or an export"
    )
    parser.add_argument("--tokenizer", help=f"bytes, a tiktoken name or {NO_TOKENIZER} (default: the checkpoint's)")
    parser.add_argument("--companions", type=Path, metavar="DIR", help="files that go beside, such as README.md")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 with one line of JSON on stdout, 1 with the reason on stderr."""
    asked, began = _parse(arguments), time.monotonic()
    try:
        record = export(asked)
    except (CheckpointError, ExportError, NotExpressible, VocabularyError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except (SafetensorError, OSError) as error:
        print(f"export: cannot read or write: {error}", file=sys.stderr)
        return 1
    line = {
        "event": "exported",
        "to": str(asked.to.absolute()),
        **record,
        "seconds": round(time.monotonic() - began, 3),
    }
    print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
