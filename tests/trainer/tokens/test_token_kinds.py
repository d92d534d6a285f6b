"""What is a token file and what is not: the computer that plans and the machine that trains answer alike."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import GptctlError
from orchestrator.datasets.remote_dataset import open_dataset
from orchestrator.storage import path as path_storage
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream

VOCAB = 50257
RANDOM = np.random.default_rng(0)
IDS = np.minimum((RANDOM.pareto(0.35, 20_000) * 20).astype(np.int64) + 11, VOCAB - 1)
"""As frequent as words are: a few ids make most of it, and there are some of every size."""
U16 = IDS.astype("<u2").tobytes()
FLOATS = RANDOM.normal(0, 0.02, 20_000).astype(np.float32)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 200001024\n"
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>" + b"x" * 2000 + b"</body></html>"
TEXT = b"The quick brown fox jumps over the lazy dog. " * 900


def llm_c(magic: int, version: int, ids: bytes, count: int = len(IDS), order: str = "<") -> bytes:
    return struct.pack(order + "3i", magic, version, count).ljust(1024, b"\0") + ids


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, tokens=IDS.astype("<u2"))
    return file.getvalue()


def records() -> bytes:
    parts = [part.astype("<u2").tobytes() for part in np.split(IDS, 10)]
    ends = np.cumsum([0, *map(len, parts)]) + 4 + 4 * 11
    return struct.pack("<I", 10) + ends.astype("<u4").tobytes() + b"".join(parts)


def with_brace() -> np.ndarray:
    """Ids whose ninth byte is `{`, as a safetensors header would have it."""
    ids = IDS.copy()
    ids[4] = 0x17B
    return ids


def even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)


READ: dict[str, tuple[str, bytes, np.ndarray, str | None]] = {
    "llm.c, 16 bits": (".bin", llm_c(20240520, 1, U16), IDS, None),
    "llm.c, 32 bits": (".bin", llm_c(20240801, 7, IDS.astype("<u4").tobytes()), IDS, None),
    "llm.c under any name": (".tokens", llm_c(20240520, 1, U16), IDS, None),
    "headerless, 16 bits": (".bin", U16, IDS, None),
    "headerless with a brace": (".bin", with_brace().astype("<u2").tobytes(), with_brace(), None),
    "headerless, 32 bits, vouched for": (".bin", IDS.astype("<u4").tobytes(), IDS, "uint32"),
    "headerless, 16 bits, vouched for": (".ds", U16, IDS, "uint16"),
    "headerless zeros, vouched for": (".bin", bytes(4000), np.zeros(2000, np.int64), "uint16"),
    "safetensors, uint16": (".safetensors", save({"tokens": IDS.astype("uint16")}), IDS, None),
    "safetensors, uint32": (".safetensors", save({"tokens": IDS.astype("uint32")}), IDS, None),
    "safetensors, int64": (".safetensors", save({"tokens": IDS}), IDS, None),
    "safetensors called .bin": (".bin", save({"tokens": IDS.astype("uint16")}), IDS, None),
    "safetensors, other tensors too": (
        ".safetensors", save({"a": FLOATS, "tokens": IDS.astype("uint16"), "z": FLOATS}), IDS, None,
    ),
    "NumPy, uint16": (".npy", npy(IDS.astype("<u2")), IDS, None),
    "NumPy, int32": (".npy", npy(IDS.astype("<i4")), IDS, None),
    "NumPy, int64": (".npy", npy(IDS), IDS, None),
    "NumPy called .bin": (".bin", npy(IDS.astype("<u2")), IDS, None),
}  # fmt: skip
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "llm.c, version 2": (".bin", llm_c(20240520, 2, U16), "llm.c shard of version 2"),
    "llm.c, version 7 with the other magic": (".bin", llm_c(20240520, 7, U16), "llm.c shard of version 7"),
    "llm.c, truncated": (".bin", llm_c(20240520, 1, U16)[:-10], "truncated or damaged"),
    "llm.c, 32 bits, truncated": (".bin", llm_c(20240801, 7, IDS.astype("<u4").tobytes())[:-100], "truncated"),
    "llm.c, header only in part": (".bin", llm_c(20240520, 1, U16)[:100], "truncated or damaged"),
    "llm.c, big-endian": (".bin", llm_c(20240520, 1, IDS.astype(">u2").tobytes(), order=">"), "big-endian"),
    "llm.c, HellaSwag": (".bin", llm_c(20240522, 1, U16), "HellaSwag"),
    "llm.c, a model": (".bin", llm_c(20240326, 3, FLOATS.tobytes()), "a model's checkpoint"),
    "llm.c, a magic of tomorrow": (".bin", llm_c(20270101, 1, U16), "llm.c's kind"),
    "headerless, 32 bits": (".bin", IDS.astype("<u4").tobytes(), 'data.dtype = "uint32"'),
    "headerless, 32 bits, 128k ids": (".bin", RANDOM.integers(0, 128_000, 20_000).astype("<u4").tobytes(), "32-bit"),
    "headerless, 64 bits": (".bin", IDS.tobytes(), "64-bit numbers"),
    "headerless, big-endian": (".bin", IDS.astype(">u2").tobytes(), "bytes swapped"),
    "headerless, 32 bits big-endian": (".bin", IDS.astype(">u4").tobytes(), "big-endian 32-bit"),
    "headerless, 8 bits": (".bin", (IDS % 65).astype("u1").tobytes(), "one byte per id"),
    "headerless, another vocabulary": (".bin", (IDS + 15_000).astype("<u2").tobytes(), "the vocabulary has 50257"),
    "headerless, another suffix": (".dat", U16, "neither safetensors, an llm.c shard nor"),
    "a header of 256 words": (".bin", struct.pack("<3i", 777, 1, 20_000).ljust(1024, b"\0") + U16, "states 20000"),
    "a count of 8 bytes": (".bin", struct.pack("<q", 20_000) + U16, "states 20000"),
    "a padded header": (".bin", struct.pack("<2i", 12_345, 9).ljust(512, b"\0") + U16, "filled up with zeros"),
    "zeros": (".bin", bytes(40_000), "nothing but zeros"),
    "noise": (".bin", RANDOM.bytes(40_000), "the vocabulary has 50257"),
    "float16": (".bin", FLOATS.astype("<f2").tobytes(), "floating-point"),
    "bfloat16": (".bin", (FLOATS.view("<u4") >> 16).astype("<u2").tobytes(), "floating-point"),
    "float32": (".bin", FLOATS.tobytes(), "the vocabulary has 50257"),
    "text": (".bin", TEXT[:40_000], "is text, not tokens"),
    "UTF-8 text": (".bin", ("Die Größe der Übung, schön. " * 900).encode()[:20_000], "is text, not tokens"),
    "JSON": (".bin", json.dumps([{"text": "a b c"}] * 2000).encode()[:38_000], "is JSON"),
    "gzip": (".bin", even(gzip.compress(U16)), "compressed with gzip"),
    "zstd": (".bin", b"\x28\xb5\x2f\xfd" + RANDOM.bytes(4000), "compressed with zstd"),
    "npz": (".bin", even(npz()), "a zip archive"),
    "a pickle": (".bin", even(pickle.dumps(IDS)), "a Python pickle"),
    "Parquet": (".bin", b"PAR1" + RANDOM.bytes(4000) + b"PAR1", "a Parquet file"),
    "GGUF": (".bin", b"GGUF" + struct.pack("<I", 3) + RANDOM.bytes(4000), "a GGUF file"),
    "SQLite": (".bin", b"SQLite format 3\0" + bytes(4000), "an SQLite database"),
    "Megatron's index": (".bin", b"MMIDIDX\0\0" + RANDOM.bytes(3999), "index of a Megatron data set"),
    "MDS, LitData": (".bin", records(), "LitData"),
    "a pointer, .bin": (".bin", even(LFS), "a pointer of Git LFS"),
    "a pointer, .safetensors": (".safetensors", LFS, "a pointer of Git LFS"),
    "a pointer, .npy": (".npy", LFS, "a pointer of Git LFS"),
    "a web page, .bin": (".bin", even(PAGE), "a web page"),
    "a web page, .safetensors": (".safetensors", PAGE, "a web page"),
    "a refusal of a store": (".bin", b'<?xml version="1.0"?>\n<Error><Code>Denied</Code></Error>  ', "an XML document"),
    "an odd size": (".bin", U16 + b"x", "not a whole number of uint16"),
    "nothing": (".bin", b"", "not a whole number of uint16"),
    "safetensors of weights": (".safetensors", save({"wte": FLOATS}), "no tensor named tokens, only wte"),
    "safetensors, 2-D": (".safetensors", save({"tokens": IDS.reshape(2, -1)}), "1-D tensor"),
    "safetensors of floats": (".safetensors", save({"tokens": FLOATS}), "1-D tensor"),
    "safetensors, truncated": (".safetensors", save({"tokens": IDS})[:-100], "truncated or damaged"),
    "safetensors, negative ids": (".safetensors", save({"tokens": IDS * 0 - 1}), "has id -1"),
    "safetensors, no ids": (".safetensors", save({"tokens": IDS[:0]}), "holds no tokens"),
    "noise called .safetensors": (".safetensors", bytes(300), "not a safetensors file"),
    "NumPy, 2-D": (".npy", npy(IDS.reshape(100, -1)), "shape (100, 200)"),
    "NumPy, floats": (".npy", npy(FLOATS), "array of <f4"),
    "NumPy, big-endian": (".npy", npy(IDS.astype(">u2")), "array of >u2"),
    "NumPy, objects": (".npy", npy(np.array([{"a": 1}] * 5)), "array of |O"),
    "NumPy, truncated": (".npy", npy(IDS)[:-100], "truncated or damaged"),
}  # fmt: skip


def both(folder: Path, suffix: str, content: bytes, dtype: str | None = None, vocab: int = VOCAB) -> tuple[Any, Any]:
    """What this computer says (a Layout or an error) and what the machine says (a stream or an error)."""
    path = folder / f"train{suffix}"
    path.write_bytes(content)
    model = {"vocab_size": vocab, "context_length": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}
    data = {"source": str(path), "dtype": dtype}
    recipe = Recipe.model_validate({"name": "r", "model": model, "data": data})
    here: Any
    there: Any
    try:
        here = open_dataset(path_storage.storage(), recipe, str(path)).train[0].layout
    except GptctlError as error:
        here = error
    try:
        there = TokenStream.open([path], vocab, dtype)
    except DataError as error:
        there = error
    return here, there


@pytest.mark.parametrize("case", READ)
def test_what_proves_itself_is_read_id_for_id(tmp_path: Path, case: str) -> None:
    suffix, content, ids, dtype = READ[case]
    here, there = both(tmp_path, suffix, content, dtype)
    assert not isinstance(here, Exception) and not isinstance(there, Exception), (here, there)
    assert here.tokens == len(there) == len(ids)
    assert there.read(0, len(ids)).tolist() == ids.tolist()


@pytest.mark.parametrize("case", REFUSED)
def test_what_proves_nothing_is_refused_by_name_before_and_on_the_machine(tmp_path: Path, case: str) -> None:
    suffix, content, words = REFUSED[case]
    here, there = both(tmp_path, suffix, content)
    assert isinstance(here, GptctlError) and here.exit_code == 2 and isinstance(there, DataError), (here, there)
    assert words in f"{here.message}; {here.hint}" and words in str(there)


SLOW = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
BEGINNINGS = [
    b"", b"PK\x03\x04", b"{", b"\x80\x04\x95", b"\x93NUMPY\x01\x00v\x00{'descr': '<u2'",
    struct.pack("<3i", 20240520, 1, 40), struct.pack("<2i", 20240801, 7),
    struct.pack("<Q", 64) + b'{"tokens":{"dtype":"U16","shape":[9],"data_offsets":[0,18]}}',
]  # fmt: skip


@SLOW
@given(
    begin=st.sampled_from(BEGINNINGS),
    rest=st.binary(max_size=400),
    suffix=st.sampled_from([".bin", ".safetensors", ".npy", ".dat"]),
    dtype=st.sampled_from([None, None, "uint16", "uint32"]),
    vocab=st.sampled_from([257, 50257, 65536]),
)
def test_any_bytes_are_the_same_to_both_and_never_an_accident(
    tmp_path: Path, begin: bytes, rest: bytes, suffix: str, dtype: str | None, vocab: int
) -> None:
    content = begin + rest
    here, there = both(tmp_path, suffix, content, dtype, vocab)
    assert isinstance(here, Exception) == isinstance(there, Exception), (here, there)
    if isinstance(here, Exception):
        assert here.message.removeprefix("data.source: ") in str(there).replace(str(tmp_path) + "/", "")
        return
    stored = np.frombuffer(content, np.dtype(here.dtype).newbyteorder("<"), here.tokens, here.data_start)
    assert there.read(0, len(there)).tolist() == stored.tolist()


@SLOW
@given(
    kind=st.sampled_from(["<u2", "<u4", "<i8", ">u2", ">u4", "u1", "llmc", "llmc32", "npy", "safetensors"]),
    count=st.integers(600, 3000),
    seed=st.integers(0, 2**32 - 1),
    vocab=st.sampled_from([257, 5000, 50257]),
)
def test_ids_written_in_any_way_are_read_as_they_are_or_not_at_all(
    tmp_path: Path, kind: str, count: int, seed: int, vocab: int
) -> None:
    random = np.random.default_rng(seed)
    count = count if kind != "u1" else 4 * count  # two ids make a word: proof takes as many words of them
    ids = np.minimum((random.pareto(0.35, count) * 20).astype(np.int64) + 11, vocab - 1)
    ids = ids if kind != "u1" else ids % 200
    content = {
        "llmc": lambda: llm_c(20240520, 1, ids.astype("<u2").tobytes(), count),
        "llmc32": lambda: llm_c(20240801, 7, ids.astype("<u4").tobytes(), count),
        "npy": lambda: npy(ids.astype("<u2")),
        "safetensors": lambda: save({"tokens": ids.astype("uint16")}),
    }.get(kind, lambda: ids.astype(kind).tobytes())()
    here, there = both(tmp_path, ".bin", content, vocab=vocab)
    assert isinstance(here, Exception) == isinstance(there, Exception), (here, there)
    if kind in ("<u2", "llmc", "llmc32", "npy", "safetensors"):
        assert not isinstance(there, Exception) and there.read(0, count).tolist() == ids.tolist(), there
    else:
        assert isinstance(there, Exception)
