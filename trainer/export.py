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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from safetensors import SafetensorError, safe_open

from trainer.arithmetic import parameter_count
from trainer.checkpoints.export_folder import (
    RECORD,
    ExportError,
    check_free_space,
    check_target,
    files_below,
    replace_export,
    restore_export,
    staging_path,
)
from trainer.checkpoints.manifest import (
    CheckpointError,
    checkpoint_folder,
    read_meta,
    sha256_of,
    task_of,
    tokenizer_name,
    verify,
)
from trainer.config.task_config import CLASSIFY, PRETRAIN, TaskConfig
from trainer.contract import ModelConfig
from trainer.run_files import META_FILE, MODEL_FILE, CheckpointMeta, ManifestEntry
from trainer.tokens.tensor_file import Array, PlannedTensor, in_type, write_tensors
from trainer.weights.gguf_file import GgufError, write_gguf
from trainer.weights.gpt2_layout import (
    NotExpressibleError,
    StoredTensor,
    as_gpt2,
    gpt2_config,
    layout_name,
    missing_biases,
    read_shape,
)
from trainer.weights.task_layout import adapter_config, adapter_tensors, class_config, with_class_head, without_adapters
from trainer.weights.tokenizer_files import Vocabulary, VocabularyError, open_vocabulary, tokenizer_files

NO_TOKENIZER = "none"
GGUF_FILE = "model.gguf"
ADAPTER_FILE = "adapter_model.safetensors"
DTYPES = {"fp32": ("F32", "float32"), "bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16")}
"""--dtype -> safetensors' and torch's names."""
Entries = Mapping[str, ManifestEntry]
"""Size and digest of files that were hashed as they were written."""


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
    task: dict[str, object]
    """What the model was tuned for, and the template of its instructions."""
    lineage: dict[str, Any]
    """Of the checkpoint: where its first weights came from, and what they have seen."""
    files: dict[str, ManifestEntry]


class Tokenizer(NamedTuple):
    """The exported tokenizer; None and no files for an export without one."""

    vocabulary: Vocabulary | None
    files: Mapping[str, str]


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
        if options.companions:
            shutil.copytree(options.companions, staging, dirs_exist_ok=True, copy_function=shutil.copyfile)
        record: ExportRecord = {
            "format": options.format,
            "step": meta.get("step"),
            "checkpoint_sha256": own[MODEL_FILE]["sha256"],
            **facts,
            **_told_about(meta),
            "files": {name: known.get(name) or _manifest_entry(staging / name) for name in files_below(staging)},
        }
        write_text(staging / RECORD, json.dumps(record, indent=1) + "\n")
        replace_export(staging, to)
    finally:
        restore_export(to)
        shutil.rmtree(staging, ignore_errors=True)
    return record


def _told_about(meta: CheckpointMeta) -> ExportRecord:
    """Task and lineage, where the checkpoint has them. Adapters are merged, or in files of their own."""
    told: ExportRecord = {"lineage": meta["lineage"]} if "lineage" in meta else {}
    task = task_of(meta)
    if task.kind != PRETRAIN:
        told["task"] = {"kind": task.kind, "prompt": task.prompt, "labels": list(task.labels)}
    return told


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
    task = task_of(meta)
    with opened(source, model, task) as tensors:
        planned = {name: in_type(tensor, DTYPES[options.dtype][0]) for name, tensor in tensors.items()}
        weights = write_tensors(to / MODEL_FILE, planned, {"format": "pt"})  # transformers requires it
    marks = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    own = gpt2_config(model, end_of_text, DTYPES[options.dtype][1])
    write_json(to / "config.json", {**own, **class_config(task, end_of_text)})
    # No max_length: transformers would warn at each call that gives max_new_tokens.
    write_json(to / "generation_config.json", marks)
    for name, text in tokenizer.files.items():
        write_text(to / name, text)
    return facts_of(model, vocabulary), {MODEL_FILE: weights}


def write_llama(
    source: Path, meta: CheckpointMeta, tokenizer: Tokenizer, to: Path, options: argparse.Namespace
) -> tuple[ModelFacts, Entries]:
    """model.gguf, which has the tokenizer in it. Raises NotExpressibleError, GgufError."""
    model, task = read_shape(meta.get("model")), task_of(meta)
    if task.kind == CLASSIFY:
        raise NotExpressibleError("llama.cpp's GPT-2 has no head for classes: export it with --format hf")
    with opened(source, model, task) as tensors:
        write_gguf(
            to / GGUF_FILE, model, tensors, tokenizer.vocabulary, dtype=DTYPES[options.dtype][0], name=options.to.name
        )
    return facts_of(model, tokenizer.vocabulary), {}


def write_adapters(
    source: Path, meta: CheckpointMeta, tokenizer: Tokenizer, to: Path, options: argparse.Namespace
) -> tuple[ModelFacts, Entries]:
    """adapter_config.json and adapter_model.safetensors, for `peft`. Raises NotExpressibleError without adapters."""
    model, task = read_shape(meta.get("model")), task_of(meta)
    write_json(to / "adapter_config.json", adapter_config(task, model))
    with stored(source) as (found, read):
        planned = adapter_tensors(found, read)
        write_tensors(to / ADAPTER_FILE, planned, {"format": "pt"})
    return {
        **facts_of(model, tokenizer.vocabulary),
        "parameters": sum(math.prod(tensor.shape) for tensor in planned.values()),
    }, {}


@contextmanager
def opened(source: Path, model: ModelConfig, task: TaskConfig) -> Iterator[Mapping[str, PlannedTensor]]:
    """The checkpoint's tensors as GPT-2 has them, adapters merged, each read when its turn comes."""
    with stored(source) as (found, read):
        planned = as_gpt2(model, *without_adapters(task, found, read))
        yield with_class_head(planned, found, read) if task.kind == CLASSIFY else planned


@contextmanager
def stored(source: Path) -> Iterator[tuple[dict[str, StoredTensor], Callable[[str], Array]]]:
    """The tensors of the file, and how to read one."""
    with safe_open(source / MODEL_FILE, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        found = {name: StoredTensor(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        yield found, file.get_tensor


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


WRITERS = {"hf": write_hf, "gguf": write_llama, "safetensors": write_plain, "adapters": write_adapters}


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
