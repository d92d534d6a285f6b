"""`python -m trainer.import_model`: weights of another program as a checkpoint of this one, whole or not at all.

Reads Hugging Face's GPT-2, nanoGPT's and the reference trainer's layouts and the exports of this trainer; refuses by
name what its GPT-2 cannot express. Needs numpy; torch only for pickles, of which it runs no code. It must not change
what it reads.

Example::

    python -m trainer.import_model gpt2 --to runs/gpt2/checkpoints/step-000000
    {"event": "imported", "layout": "Hugging Face GPT-2", "parameters": 124439808, "sha256": ..., ...}
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, TypedDict

from trainer.arithmetic import parameter_count
from trainer.run_files import MANIFEST_FILE, META_FILE, MODEL_FILE, TEMPORARY_PREFIX, CheckpointMeta, ManifestEntry
from trainer.tokens.tensor_file import write_tensors
from trainer.weights.layouts import Allowed, ReadModel, read_model
from trainer.weights.tokenizers import check_tokenizer, own_step, own_tokenizer
from trainer.weights.weight_files import FoundWeights, WeightsError, open_weights

MOST_SAID = 800
"""Characters of an error: a foreign file may hold a name of any length."""


class Imported(TypedDict):
    """What was read, and where it went."""

    to: str
    layout: str
    model: dict[str, Any]
    parameters: int
    step: int
    tokenizer: str
    sha256: str
    """Of the checkpoint's model.safetensors."""
    source_sha256: dict[str, str]
    """Of the files that were read, by name."""
    dropped: list[str]
    remarks: list[str]
    lineage: dict[str, Any]
    """Of one of our own exports: where its first weights came from, and what they have seen; else empty."""


def import_model(options: argparse.Namespace) -> Imported:
    """Writes the checkpoint folder and returns what it is. Raises WeightsError, OSError."""
    found = open_weights(options.source)
    check_digests(found)
    read = read_model(found, Allowed(options.n_head, options.accept_tanh_gelu))
    tokenizer = options.tokenizer or own_tokenizer(found, read.model)
    remark = check_tokenizer(found, read.model, tokenizer)
    said = found.described.get("gptctl.json") or found.described.get("meta.json", {})
    lineage = said.get("lineage")
    imported: Imported = {
        "to": str(options.to.absolute()),
        "layout": read.layout,
        "model": dataclasses.asdict(read.model),
        "parameters": parameter_count(read.model),
        "step": own_step(found),
        "tokenizer": tokenizer,
        "sha256": "",
        "source_sha256": {file.name: _sha256(file) for file in found.files},
        "dropped": list(read.dropped),
        "remarks": [remark] if remark else [],
        "lineage": lineage if isinstance(lineage, dict) else {},
    }
    if options.to.exists():
        raise WeightsError(f"{options.to} exists already")
    return {**imported, "sha256": write(options.to, read, imported)}


def check_digests(found: FoundWeights) -> None:
    """Of our own exports: gptctl.json has the sha256 of the weights. Raises WeightsError."""
    listed = found.described.get("gptctl.json", {}).get("files", {})
    for file in found.files:
        entry = listed.get(file.name) if isinstance(listed, dict) else None
        wanted = entry.get("sha256") if isinstance(entry, dict) else None
        if wanted is not None and _sha256(file) != wanted:
            raise WeightsError(f"{file}: does not have the sha256 of its gptctl.json: it is damaged")


def write(to: Path, read: ReadModel, imported: Imported) -> str:
    """The folder, under another name until it is whole; returns the sha256 of its weights."""
    temporary = to.with_name(TEMPORARY_PREFIX + to.name)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights = write_tensors(temporary / MODEL_FILE, read.tensors, {"format": "pt"})
        meta: CheckpointMeta = {
            "step": imported["step"],
            "model": imported["model"],
            "tokenizer": imported["tokenizer"],
            "time": round(time.time(), 3),
        }
        about = json.dumps(meta, indent=1).encode() + b"\n"
        (temporary / META_FILE).write_bytes(about)
        entry: ManifestEntry = {"size_bytes": len(about), "sha256": hashlib.sha256(about).hexdigest()}
        files = {MODEL_FILE: weights, META_FILE: entry}
        (temporary / MANIFEST_FILE).write_text(json.dumps({"files": files}, indent=1) + "\n")
        temporary.rename(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return weights["sha256"]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.import_model", description="Import the weights of another program as a checkpoint."
    )
    parser.add_argument("source", type=Path, help="a folder or file of weights: safetensors, or a pickle of tensors")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the checkpoint's folder")
    parser.add_argument("--n-head", type=int, help="attention heads, where nothing beside the weights says it")
    parser.add_argument("--tokenizer", help="bytes, a tiktoken name or none (default: the model's own)")
    parser.add_argument("--accept-tanh-gelu", action="store_true", help="take a model that has the exact GELU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0 with one line of JSON on stdout, or 1 with the reason on stderr."""
    try:
        line = import_model(_parse(arguments))
    except WeightsError as error:
        print("import_model:", textwrap.shorten(str(error), MOST_SAID), file=sys.stderr)
        return 1
    except OSError as error:
        print("import_model: cannot read or write:", textwrap.shorten(str(error), MOST_SAID), file=sys.stderr)
        return 1
    print(json.dumps({"event": "imported", **line}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
