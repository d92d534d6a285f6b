"""Token files of every kind and every kind of damage; batches as a pure function of (seed, step, data)."""

import dataclasses
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.support.files.small_runs import python_source
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig
from trainer.tokens.batches import Share, TrainingData, open_data, prefetched
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream

TEXT = np.frombuffer(python_source(5000), dtype=np.uint8).astype("<u2")
CONTEXT = 16


def llm_c(tokens: np.ndarray, version: int = 1) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, version, len(tokens)
    return header.tobytes() + tokens.astype("<u2").tobytes()


def write_shard(path: Path, kind: str, tokens: np.ndarray) -> Path:
    if kind == "llm.c":
        path.write_bytes(llm_c(tokens))
    elif kind == "nanogpt":
        tokens.astype("<u2").tofile(path)
    else:
        save_file({"tokens": tokens.astype(kind)}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llm.c", "a.bin"),
        ("llm.c", "a.tokens"),
        ("nanogpt", "a.bin"),
        ("uint16", "a.safetensors"),
        ("uint32", "a.bin"),
        ("int32", "a.safetensors"),
    ],
)
def test_the_magic_decides_then_the_suffix(tmp_path: Path, kind: str, name: str) -> None:
    stream = TokenStream.open([write_shard(tmp_path / name, kind, TEXT)])
    assert len(stream) == len(TEXT)
    part = stream.read(1000, 33)
    assert part.dtype == np.int64
    assert part.tolist() == TEXT[1000:1033].tolist()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    cuts=st.lists(st.integers(1, 199), min_size=0, max_size=4, unique=True),
    kinds=st.lists(st.sampled_from(["llm.c", "nanogpt", "uint16"]), min_size=5, max_size=5),
    start=st.integers(0, 200),
    count=st.integers(0, 200),
)
def test_shards_read_as_one_stream(tmp_path: Path, cuts: list[int], kinds: list[str], start: int, count: int) -> None:
    pieces = np.split(TEXT[:200], sorted(cuts))
    files = [write_shard(tmp_path / f"{n}.bin", kinds[n], piece) for n, piece in enumerate(pieces)]
    stream = TokenStream.open(files)
    assert len(stream) == 200
    if start + count <= 200:
        assert stream.read(start, count).tolist() == TEXT[start : start + count].tolist()
    else:
        with pytest.raises(DataError, match="has 200"):
            stream.read(start, count)


SAFETENSORS_TRUNCATED = (
    b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"tokens":{"dtype":"U16","shape":[99],"data_offsets":[0,198]}}  '
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.bin", llm_c(TEXT)[:-10], "truncated or damaged"),
        ("long.bin", llm_c(TEXT) + b"xx", "truncated or damaged"),
        ("head.bin", llm_c(TEXT)[:100], "truncated or damaged"),
        ("new.bin", llm_c(TEXT, version=7), "version 7"),
        ("odd.bin", b"\x01\x02\x03", "not a whole number"),
        ("empty.bin", b"", "not a whole number"),
        ("cut.safetensors", SAFETENSORS_TRUNCATED, "truncated or damaged"),
        ("noise.safetensors", b"\x00" * 300, "not a safetensors file"),
        ("notes.txt", b"to be or not to be", "neither safetensors, an"),
        ("absent.bin", None, "No such file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        TokenStream.open([tmp_path / name])
    assert name in str(caught.value)


def test_safetensors_without_one_row_of_tokens_is_refused(tmp_path: Path) -> None:
    save_file({"ids": TEXT.astype("uint16")}, tmp_path / "other.safetensors")
    save_file({"tokens": TEXT.astype("uint16").reshape(2, -1)}, tmp_path / "square.safetensors")
    save_file({"tokens": TEXT.astype("float32")}, tmp_path / "float.safetensors")
    for name, message in (("other", "only ids"), ("square", "1-D"), ("float", "F32")):
        with pytest.raises(DataError, match=message):
            TokenStream.open([tmp_path / f"{name}.safetensors"])


@pytest.mark.parametrize("bad", [257, 65535])
def test_an_id_beyond_the_vocabulary_is_refused_with_its_place(tmp_path: Path, bad: int) -> None:
    tokens = TEXT.copy()
    tokens[4321] = bad
    path = write_shard(tmp_path / "a.bin", "nanogpt", tokens)
    with pytest.raises(DataError, match=f"a.bin: token 4321 has id {bad}"):
        TokenStream.open([path], vocab_size=257)


def test_an_id_that_no_sample_sees_is_refused_where_it_is_read(tmp_path: Path) -> None:
    tokens = np.tile(TEXT, 20)
    tokens[20_000] = 257
    stream = TokenStream.open([write_shard(tmp_path / "a.bin", "nanogpt", tokens)], vocab_size=257)
    assert stream.read(0, 20_000).max() < 257
    with pytest.raises(DataError, match=r"a.bin: token 20000 has id 257"):
        stream.read(19_990, 100)


def test_a_negative_id_is_refused(tmp_path: Path) -> None:
    tokens = TEXT.astype("int32")
    tokens[5] = -1
    path = write_shard(tmp_path / "a.safetensors", "int32", tokens)
    with pytest.raises(DataError, match="token 5 has id -1"):
        TokenStream.open([path], vocab_size=257)


def test_twenty_gigabytes_take_no_memory(tmp_path: Path) -> None:
    count = 10_000_000_000
    path = tmp_path / "big.bin"
    with path.open("wb") as file:
        file.truncate(2 * count)  # sparse: it takes no disk either
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = TokenStream.open([path], vocab_size=257, dtype="uint16")
    assert len(stream) == count
    assert stream.read(count - 1000, 1000).tolist() == [0] * 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def data_of(tmp_path: Path, *, train: TrainConfig | None = None, **data: object) -> TrainingData:
    path = write_shard(tmp_path / "train.bin", "nanogpt", TEXT[:1000])
    return open_data(
        RunConfig(
            model=ModelConfig(vocab_size=257, context_length=CONTEXT),
            data=dataclasses.replace(DataConfig(train_files=(str(path),)), **data),
            train=train or TrainConfig(global_batch=12, seed=1),
        )
    )


def test_sequences_overlap_by_the_target_only(tmp_path: Path) -> None:
    data = data_of(tmp_path, start_token=10)
    ids, targets = data.micro_batch(0, 0, 12)
    assert ids.dtype == targets.dtype == torch.int64
    assert ids.flatten().tolist() == TEXT[10 : 10 + 12 * CONTEXT].tolist()
    assert targets.flatten().tolist() == TEXT[11 : 11 + 12 * CONTEXT].tolist()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    step=st.integers(0, 40),
    split=st.sampled_from([(1, 12), (1, 1), (2, 3), (2, 6), (4, 3), (3, 2), (12, 1), (6, 2)]),
    order=st.sampled_from(["sequential", "shuffled"]),
)
def test_every_split_sees_the_same_tokens_in_a_step(
    tmp_path: Path, step: int, split: tuple[int, int], order: str
) -> None:
    world, size = split
    data = data_of(tmp_path, order=order)
    whole, _ = data.micro_batch(step, 0, 12)
    parts = [
        data.micro_batch(step, index, size, rank, world)[0]
        for index in range(12 // (world * size))
        for rank in range(world)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_every_epoch_has_each_sequence_once_in_an_order_of_its_own(tmp_path: Path, order: str) -> None:
    data = data_of(tmp_path, order=order)
    assert data.sequences == 999 // CONTEXT
    numbers = np.concatenate([data.sequences_of_step(step) for step in range(3 * data.sequences)])
    epochs = numbers.reshape(-1, data.sequences)
    assert all(sorted(epoch) == list(range(data.sequences)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)
    assert (epochs[0].tolist() == list(range(data.sequences))) == (order == "sequential")


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    first, second = (
        data_of(tmp_path, order="shuffled", train=TrainConfig(global_batch=12, seed=seed)) for seed in (1, 2)
    )
    assert first.sequences_of_step(0).tolist() != second.sequences_of_step(0).tolist()


@pytest.mark.parametrize("validation_tokens", [1, 64, 100])
def test_the_held_out_end_is_never_trained_on(tmp_path: Path, validation_tokens: int) -> None:
    data = data_of(tmp_path, validation_tokens=validation_tokens)
    assert data.validation is not None
    assert data.validation.start + data.validation.tokens + 1 == 1000
    last_target = data.start + data.sequences * CONTEXT
    assert data.validation.start - CONTEXT <= last_target < data.validation.start


def test_a_validation_file_is_read_from_its_offset_and_takes_nothing_from_training(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "val.bin", "llm.c", TEXT[2000:])
    data = data_of(tmp_path, validation_files=(str(path),), validation_start_token=100, validation_tokens=50)
    assert data.sequences == 999 // CONTEXT
    assert data.validation is not None
    assert data.validation.stream.read(data.validation.start, 50).tolist() == TEXT[2100:2150].tolist()


def test_the_window_ends_where_it_was_told(tmp_path: Path) -> None:
    data = data_of(tmp_path, start_token=100, tokens=10 * CONTEXT)
    assert data.sequences == 10
    everything = torch.cat([data.micro_batch(step, 0, 12)[1] for step in range(10)])
    assert set(everything.unique().tolist()) <= set(TEXT[101 : 101 + 10 * CONTEXT].tolist())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"start_token": 990}, "less than one sequence"),
        ({"start_token": 5000}, "less than one sequence"),
        ({"tokens": 2000}, "there are 1000"),
        ({"validation_tokens": 995}, "less than one sequence"),
        ({"tokens": 960, "validation_tokens": 100}, "there are 899"),
        ({"train_files": ()}, "no token files"),
    ],
)
def test_a_window_that_the_file_does_not_have_is_refused(
    tmp_path: Path, settings_: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        data_of(tmp_path, **settings_)


def test_a_validation_slice_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "val.bin", "nanogpt", TEXT[:100])
    with pytest.raises(DataError, match=r"val.bin: 100 tokens, validation needs 80 to 130"):
        data_of(tmp_path, validation_files=(str(path),), validation_start_token=80, validation_tokens=50)


@pytest.mark.parametrize("share", [Share(12, 1), Share(2, 3, rank=1, world=2)])
def test_prefetching_changes_nothing(tmp_path: Path, share: Share) -> None:
    data = data_of(tmp_path)
    got = list(prefetched(data, range(2, 5), share, torch.device("cpu")))
    wanted = [
        data.micro_batch(step, index, share.size, share.rank, share.world)
        for step in range(2, 5)
        for index in range(share.accumulation)
    ]
    assert len(got) == len(wanted)
    assert all(
        torch.equal(a, b)
        for triple, other in zip(got, wanted, strict=True)
        for a, b in zip(triple[:2], other, strict=True)
    )
    assert {weight for _, _, weight in got} == {1 / share.accumulation}


def test_a_bad_token_reaches_whoever_asks_for_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    data = data_of(tmp_path)
    tokens = TEXT[:1000].copy()
    tokens[13 * CONTEXT] = 300
    tokens.tofile(path)
    batches = prefetched(data, range(3), Share(12, 1), torch.device("cpu"))
    next(batches)
    with pytest.raises(DataError, match="has id 300"):
        next(batches)
