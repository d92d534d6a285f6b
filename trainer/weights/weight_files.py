"""The tensors of a foreign model, found in a folder or a file and read one at a time: safetensors, also in shards, or a
pickle of tensors and plain values. It must not know what the tensors mean; layouts.py does.

safetensors needs numpy alone, bf16 included. A pickle needs torch and is opened with `weights_only=True`: no code of it
runs.

Example::

    found = open_weights(Path("gpt2"))
    found.tensors["wte.weight"].shape, found.described["config.json"]["n_head"]
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.tokens.tensor_file import Array

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DESCRIPTIONS = ("config.json", "model.json", "gptctl.json", "meta.json")
INDEX = "model.safetensors.index.json"
INNER = ("model", "state_dict", "model_state_dict")
"""Keys under which training programs keep the weights in a pickle beside their optimizer."""
WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name."""
MOST_HEADER_BYTES = 100 << 20
DTYPES: Mapping[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""The types of a safetensors file that GPT-2's come in; integers and truth values are masks."""


class WeightsError(ValueError):
    """Weights that are missing, damaged, or not what this trainer can express. Names the file or tensor, and why."""


class Weight(NamedTuple):
    """A stored tensor. `read` gives it as float32."""

    shape: tuple[int, ...]
    read: Callable[[], Array]
    dtype: str


@dataclass(frozen=True)
class FoundWeights:
    """What is in a folder or a file, by name, and what is said about it beside it."""

    place: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Weight]
    described: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The JSON files beside the weights, by name; `model_args` of a pickle."""


def open_weights(place: Path) -> FoundWeights:
    """The tensors of a folder, a run folder of the reference trainer, or one file. Raises WeightsError."""
    files = _weight_files(place)
    tensors: dict[str, Weight] = {}
    extra: dict[str, Mapping[str, Any]] = {}
    for file in files:
        if file.suffix == SAFETENSORS:
            tensors.update(_of_safetensors(file))
        else:
            found, arguments = _of_pickle(file)
            tensors.update(found)
            extra = {"model_args": arguments} if arguments else extra
    return FoundWeights(place, files, _unwrapped(tensors), {**_descriptions(files[0].parent), **extra})


def holds_weights(place: Path) -> bool:
    """Whether there is anything here that open_weights would read."""
    try:
        return bool(_weight_files(place))
    except WeightsError:
        return False


def _weight_files(place: Path) -> tuple[Path, ...]:
    if place.is_file():
        _check_suffix(place)
        return (place,)
    for folder in (place, place / "checkpoints" / "latest", place / "checkpoints" / "best"):
        if found := _in_folder(folder):
            return found
    gguf = next(iter(sorted(place.glob("*.gguf"))), None) if place.is_dir() else None
    if gguf is not None:
        _check_suffix(gguf)
    raise WeightsError(f"{place}: no weights are there; known: model.safetensors, pytorch_model.bin, one *.pt")


def _in_folder(folder: Path) -> tuple[Path, ...]:
    """The file, or the shards of an index; none where the folder has several that no index explains."""
    if (folder / INDEX).is_file():
        listed = _json(folder / INDEX).get("weight_map")
        names = listed.values() if isinstance(listed, dict) else ()
        shards = sorted({folder / Path(str(name)).name for name in names})
        for shard in shards:
            if not shard.is_file():
                raise WeightsError(f"{folder}: {INDEX} lists {shard.name[:60]!a}, which is not there")
        if not shards:
            raise WeightsError(f"{folder}: {INDEX} lists no file")
        return tuple(shards)
    for name in ("model.safetensors", "pytorch_model.bin", "ckpt.pt"):
        if (folder / name).is_file():
            return (folder / name,)
    alone = [path for suffix in (SAFETENSORS, *PICKLES) for path in sorted(folder.glob(f"*{suffix}"))]
    return (alone[0],) if len(alone) == 1 else ()


def _check_suffix(file: Path) -> None:
    if file.suffix == ".gguf":
        raise WeightsError(f"{file}: GGUF is for llama.cpp, and its tensors may be rounded: export with --format hf")
    if file.suffix not in (SAFETENSORS, *PICKLES):
        raise WeightsError(f"{file}: not a file of weights; known: {', '.join((SAFETENSORS, *PICKLES))}")


def _descriptions(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The JSON files that describe a model: beside its weights, else above (the reference trainer's model.json is two
    folders above its checkpoint)."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in DESCRIPTIONS:
        places = (
            (folder, folder.resolve().parent, folder.resolve().parent.parent) if name == "model.json" else (folder,)
        )
        path = next((place / name for place in places if (place / name).is_file()), None)
        if path is not None:
            found[name] = _json(path)
    return found


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: is not a JSON object")
    return value


def _unwrapped(tensors: dict[str, Weight]) -> dict[str, Weight]:
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: weight for name, weight in tensors.items()}
    return tensors


def _of_safetensors(file: Path) -> dict[str, Weight]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(size - 8, MOST_HEADER_BYTES):
                raise WeightsError(f"{file}: is not a safetensors file, or it is cut off")
            header = json.loads(stream.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _stored(file, name, entry, 8 + length, size) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{file}: its header cannot be read ({error})") from error


def _stored(file: Path, name: str, entry: Mapping[str, Any], data: int, size: int) -> Weight:
    dtype, shape = str(entry["dtype"]), tuple(int(length) for length in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if dtype not in DTYPES:
        raise WeightsError(f"{file.name}: tensor {name} has type {dtype}; known: {', '.join(DTYPES)}")
    count = math.prod(shape)
    if (
        end - begin != count * np.dtype(DTYPES[dtype]).itemsize
        or begin < 0
        or min(shape, default=0) < 0
        or data + end > size
    ):
        raise WeightsError(f"{file.name}: tensor {name} is cut off, or its size is not that of its shape {shape}")

    def read() -> Array:
        with file.open("rb") as stream:
            stream.seek(data + begin)
            return widened(np.frombuffer(stream.read(end - begin), DTYPES[dtype]).reshape(shape), dtype)

    return Weight(shape, read, dtype)


def widened(array: Array, dtype: str) -> Array:
    """As float32: exact from fp16 and bf16, rounded from fp64."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _of_pickle(file: Path) -> tuple[dict[str, Weight], Mapping[str, Any]]:
    """The weights, and nanoGPT's `model_args`."""
    # Only here: safetensors needs no torch.
    import torch

    try:
        zipped = zipfile.is_zipfile(file)  # GPT-2's own pytorch_model.bin is older, and cannot be mapped
        whole = torch.load(file, map_location="cpu", mmap=zipped, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        # Without its cause: torch's own text tells how to load the file unsafely, which would run its code.
        raise WeightsError(f"{file}: refused: {why_refused(str(error))}") from None
    inner = whole
    for key in INNER:
        if isinstance(inner, dict) and isinstance(inner.get(key), dict):
            inner = inner[key]
    if not isinstance(inner, dict) or not any(isinstance(value, torch.Tensor) for value in inner.values()):
        raise WeightsError(f"{file}: holds no tensors by name")
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, torch.Tensor)}
    arguments = whole.get("model_args") if isinstance(whole, dict) else None

    def weight(tensor: torch.Tensor) -> Weight:
        return Weight(tuple(tensor.shape), lambda: tensor.float().numpy(), str(tensor.dtype))

    return {name: weight(tensor) for name, tensor in tensors.items()}, arguments if isinstance(arguments, dict) else {}


def why_refused(said: str) -> str:
    """torch's first line, except where that gives advice: for a pickle that it refuses, what is in it."""
    if "weights" not in said.lower() and "unpickl" not in said.lower():
        return said.partition("\n")[0] if "torch." not in said else "it is not an archive that a trainer wrote"
    found = re.search(r"(?:GLOBAL|global|Unsupported\s\w+):?\s+([\w.]+\.[\w.]+)", said)
    return "it holds more than tensors and plain values" + (f": {found[1]}" if found else "")
