"""`python -m trainer.export`: a checkpoint as a folder that other libraries load, written whole or not at all.

`hf` is a native GPT2LMHeadModel with its tokenizer, for plain AutoModelForCausalLM and pipelines, without custom code;
`gguf` is one file for llama.cpp; `safetensors` is the trainer's own tensors with their shape beside them.

It needs numpy and safetensors, gguf for that format, and tiktoken where the tokenizer is one of tiktoken's; no torch.
It must not change the checkpoint or a folder it did not write.

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
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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
from trainer.model.gguf_file import GgufError, write_gguf
from trainer.model.hugging_face import (
    NotExpressibleError,
    StoredTensor,
    as_gpt2,
    gpt2_config,
    layout_name,
    missing_biases,
    read_shape,
)
from trainer.model.tokenizer_files import Vocabulary, VocabularyError, open_vocabulary, tokenizer_files
from trainer.tokens.tensor_file import PlannedTensor, in_type, write_tensors

RECORD = "gptctl.json"
"""In every export: its origin and its files. A folder without it belongs to another program."""
NO_TOKENIZER = "none"
GGUF_FILE = "model.gguf"
DTYPES = {"fp32": ("F32", "float32"), "bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16")}
"""--dtype -> safetensors' and torch's names."""
Entries = Mapping[str, ManifestEntry]
"""Size and digest of files that were hashed as they were written."""
HEADROOM_BYTES = 32_000_000
"""Space beyond the weights: the tokenizer, the card and the file system."""


class ModelFacts(TypedDict, total=False):
    """What gptctl.json says about the exported model. `safetensors` exports omit the model and its tokenizer."""

    model: dict[str, object]
    tokenizer: str | None
    parameters: int
    zero_biases: int
    """Biases that GPT-2 has and this model has not, exported as zeros."""
    layout: str
    """Of `safetensors`: whose tensors these are, and what the model has that GPT-2 has not."""


class ExportRecord(TypedDict, total=False):
    """gptctl.json: where the export comes from, what it is, and its files."""

    format: str
    step: int | None
    checkpoint_sha256: str
    model: dict[str, object]
    tokenizer: str | None
    parameters: int
    zero_biases: int
    layout: str
    files: dict[str, ManifestEntry]


class Tokenizer(NamedTuple):
    """The exported tokenizer; None and no files for an export without one."""

    vocabulary: Vocabulary | None
    files: Mapping[str, str]


class ExportError(ValueError):
    """The export is impossible, or its target is. Says what to change."""


def export(options: argparse.Namespace) -> ExportRecord:
    """Writes the folder and returns its gptctl.json."""
    source = checkpoint_folder(options.checkpoint)
    to = options.to.absolute()
    restore_export(to)
    check_target(to)
    with ThreadPoolExecutor(1) as beside:  # hashing releases the interpreter
        tokenizer = beside.submit(build_tokenizer, source, options)
        own = verify(source, only=(MODEL_FILE, META_FILE))
    meta = read_meta(source)
    check_free_space(to, own[MODEL_FILE]["size_bytes"])
    staging = staging_path(to)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        facts, known = WRITERS[options.format](source, meta, tokenizer.result(), staging, options)
        for companion in sorted(options.companions.iterdir()) if options.companions else ():
            shutil.copyfile(companion, staging / companion.name)
        record: ExportRecord = {
            "format": options.format,
            "step": meta.get("step"),
            "checkpoint_sha256": own[MODEL_FILE]["sha256"],
            **facts,
            "files": {path.name: known.get(path.name) or _manifest_entry(path) for path in sorted(staging.iterdir())},
        }
        write_text(staging / RECORD, json.dumps(record, indent=1) + "\n")
        replace_export(staging, to)
    finally:
        restore_export(to)
        shutil.rmtree(staging, ignore_errors=True)
    return record


def _manifest_entry(path: Path) -> ManifestEntry:
    with path.open("rb") as file:
        return {"size_bytes": path.stat().st_size, "sha256": sha256_of(file)}


def build_tokenizer(source: Path, options: argparse.Namespace) -> Tokenizer:
    """The vocabulary and its files' texts; none for `safetensors`. Raises NotExpressibleError, ExportError."""
    if options.format == "safetensors":
        return Tokenizer(None, {})
    meta = read_meta(source)
    model = read_shape(meta.get("model"))
    vocabulary = load_vocabulary(tokenizer_name(meta, options.tokenizer), model)
    described = vocabulary is not None and options.format == "hf"
    return Tokenizer(vocabulary, tokenizer_files(vocabulary, model.context_length) if vocabulary and described else {})


def write_hf(
    source: Path, meta: CheckpointMeta, tokenizer: Tokenizer, to: Path, options: argparse.Namespace
) -> tuple[ModelFacts, Entries]:
    """config.json, generation_config.json, model.safetensors and the tokenizer; returns what they are, and the weights'
    entry. Raises NotExpressibleError."""
    model, vocabulary = read_shape(meta.get("model")), tokenizer.vocabulary
    end_of_text = vocabulary.end_of_text if vocabulary else None
    with opened(source, model) as tensors:
        planned = {name: in_type(tensor, DTYPES[options.dtype][0]) for name, tensor in tensors.items()}
        weights = write_tensors(to / MODEL_FILE, planned, {"format": "pt"})  # transformers requires it
    marks = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    write_json(to / "config.json", gpt2_config(model, end_of_text, DTYPES[options.dtype][1]))
    # No max_length: transformers would warn at each call that gives max_new_tokens.
    write_json(to / "generation_config.json", marks)
    for name, text in tokenizer.files.items():
        write_text(to / name, text)
    return facts_of(model, vocabulary), {MODEL_FILE: weights}


def write_llama(
    source: Path, meta: CheckpointMeta, tokenizer: Tokenizer, to: Path, options: argparse.Namespace
) -> tuple[ModelFacts, Entries]:
    """model.gguf, which has the tokenizer in it. Raises NotExpressibleError, GgufError."""
    model = read_shape(meta.get("model"))
    with opened(source, model) as tensors:
        write_gguf(
            to / GGUF_FILE, model, tensors, tokenizer.vocabulary, dtype=DTYPES[options.dtype][0], name=options.to.name
        )
    return facts_of(model, tokenizer.vocabulary), {}


@contextmanager
def opened(source: Path, model: ModelConfig) -> Iterator[Mapping[str, PlannedTensor]]:
    """The checkpoint's tensors as GPT-2 has them, each read when its turn comes."""
    with safe_open(source / MODEL_FILE, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        stored = {name: StoredTensor(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        yield as_gpt2(model, stored, file.get_tensor)


def facts_of(model: ModelConfig, vocabulary: Vocabulary | None) -> ModelFacts:
    """What gptctl.json says of an export that has GPT-2's biases."""
    return {
        "model": dataclasses.asdict(model),
        "tokenizer": vocabulary.name if vocabulary else None,
        "parameters": parameter_count(model),
        "zero_biases": sum(missing_biases(model).values()),
    }


def load_vocabulary(name: str, model: ModelConfig) -> Vocabulary | None:
    """The tokenizer's vocabulary, or None for `none`. Raises ExportError where it is larger than the model's."""
    if name == NO_TOKENIZER:
        return None
    vocabulary = open_vocabulary(name)
    highest = max(vocabulary.ranks.values())
    if highest >= model.vocab_size:
        raise ExportError(
            f"tokenizer {name} has ids up to {highest}, but the model knows {model.vocab_size}: "
            f"give the right one with --tokenizer, or --tokenizer {NO_TOKENIZER}"
        )
    return vocabulary.within(model.vocab_size)


def write_plain(
    source: Path, meta: CheckpointMeta, tokenizer: Tokenizer, to: Path, options: argparse.Namespace
) -> tuple[ModelFacts, Entries]:
    """The checkpoint's weights unchanged, and its meta.json; returns the same as write_hf()."""
    shutil.copyfile(source / MODEL_FILE, to / MODEL_FILE)
    shutil.copyfile(source / META_FILE, to / META_FILE)
    with safe_open(to / MODEL_FILE, framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a dict
    facts: ModelFacts = {"parameters": sum(math.prod(shape) for shape in shapes), "zero_biases": 0}
    with suppress(TypeError):  # a checkpoint of another program may describe itself in other words
        facts["layout"] = layout_name(ModelConfig(**meta.get("model", {})))
    return facts, {}


WRITERS = {"hf": write_hf, "gguf": write_llama, "safetensors": write_plain}


def check_target(to: Path) -> None:
    """Raises ExportError unless `to` is new, empty, or an older export with no other files."""
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise ExportError(f"{to} exists and is not a folder: choose another --to")
    names = {path.name for path in to.iterdir()} if to.is_dir() else set()
    if not names:
        return
    if RECORD not in names:
        raise ExportError(f"{to} is neither empty nor an export ({_list_some(names)}): choose another --to")
    try:
        known = json.loads((to / RECORD).read_text(encoding="utf-8"))["files"].keys()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(f"{to}: its {RECORD} cannot be read: choose another --to") from error
    unlisted = names - known - {RECORD}
    if unlisted:
        raise ExportError(
            f"{to} has an export and files that are not part of it ({_list_some(unlisted)}): choose another --to"
        )


def _list_some(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def check_free_space(to: Path, weights_bytes: int) -> None:
    """Raises ExportError where the disk cannot hold the weights."""
    existing = next(folder for folder in to.parents if folder.exists())
    need, free = weights_bytes + HEADROOM_BYTES, shutil.disk_usage(existing).free
    if free < need:
        raise ExportError(f"{to} needs {need / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free")


def staging_path(to: Path) -> Path:
    """The folder where an export is written. Leftovers there may be deleted."""
    return to.with_name(TEMPORARY_PREFIX + to.name)


def backup_path(to: Path) -> Path:
    """The older export between the two renames: it exists while `to` does not, and is whole."""
    return to.with_name(f"{TEMPORARY_PREFIX}{to.name}-replaced")


def replace_export(staging: Path, to: Path) -> None:
    """Renames the older export aside, then the new one into place. The older one is deleted under the name of
    staging_path(): restore_export() must never find a part of it."""
    if to.exists():
        to.rename(backup_path(to))
    staging.rename(to)
    if backup_path(to).exists():
        backup_path(to).rename(staging)


def restore_export(to: Path) -> None:
    """Restores the older export where a process died between the two renames; deletes it beside a newer one."""
    aside = backup_path(to)
    if not aside.exists():
        return
    if not to.exists():
        aside.rename(to)
    else:
        shutil.rmtree(staging_path(to), ignore_errors=True)
        aside.rename(staging_path(to))


def write_json(path: Path, value: object) -> None:
    """Indented, in UTF-8."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8 with \\n line ends on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export", description="Export a checkpoint for other libraries."
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run (its best checkpoint) or a checkpoint folder"
    )
    parser.add_argument("--format", choices=sorted(WRITERS), default="hf", help="default: hf")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="type of the weights (default: fp32)")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="a new or empty folder, or an older export"
    )
    parser.add_argument("--tokenizer", help=f"bytes, a tiktoken name or {NO_TOKENIZER} (default: the checkpoint's)")
    parser.add_argument("--companions", type=Path, metavar="DIR", help="a folder of files to add, such as README.md")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0 with one line of JSON on stdout, or 1 with the reason on stderr."""
    options, began = _parse(arguments), time.monotonic()
    try:
        record = export(options)
    except (CheckpointError, ExportError, GgufError, NotExpressibleError, VocabularyError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except (SafetensorError, OSError) as error:
        print(f"export: cannot read or write: {error}", file=sys.stderr)
        return 1
    line = {
        "event": "exported",
        "to": str(options.to.absolute()),
        **record,
        "seconds": round(time.monotonic() - began, 3),
    }
    print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
