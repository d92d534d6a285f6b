"""What is staged of a dataset gives the run the very batches that the whole dataset would, and hardly a byte more."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import UserError
from orchestrator.datasets.remote_dataset import open_dataset
from orchestrator.datasets.staging_plan import StagedData, StagedFile, staged_data
from orchestrator.storage import path as path_storage
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig
from trainer.tokens.batches import open_data
from trainer.tokens.token_stream import TokenStream

STORE = path_storage.storage()
VOCAB = 500
BLOCK = 512


def write(path: Path, kind: str, ids: np.ndarray) -> None:
    if kind == "safetensors":
        save_file({"tokens": ids}, path)
    else:
        header = struct.pack("<3i", 20240520, 1, len(ids)).ljust(1024, b"\0") if kind == "llmc" else b""
        path.write_bytes(header + ids.tobytes())


def publish(folder: Path, kind: str, train: list[int], val: int, *, digests: str = "") -> None:
    """Shards with so many random tokens each; `digests`: blocks or sha256 into a dataset.json."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(1)
    names = [f"train-{number:05d}" for number in range(len(train))] + (["val-00000"] if val else [])
    files = {}
    for name, count in zip(names, [*train, *([val] if val else [])], strict=True):
        path = folder / f"{name}.{'safetensors' if kind == 'safetensors' else 'bin'}"
        write(path, kind, random.integers(0, VOCAB, count).astype(np.uint16))
        data = path.read_bytes()
        entry: dict[str, Any] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if digests == "blocks":
            blocks = [hashlib.sha256(data[at : at + BLOCK]).hexdigest() for at in range(0, len(data), BLOCK)]
            entry = {**entry, "blocks": blocks, "block_size_bytes": BLOCK}
        files[path.name] = entry
    if digests:
        (folder / "dataset.json").write_text(json.dumps({"files": files}))


def recipe_of(folder: Path, steps: int, **data: Any) -> Recipe:
    evaluated = data.pop("slices", ())
    return Recipe.model_validate(
        {
            "name": "r",
            "model": {"vocab_size": VOCAB, "context_length": 8, "n_layer": 1, "n_head": 1, "n_embd": 8},
            "data": {"source": str(folder), **data},
            "train": {"tokens": steps * 32, "global_batch": 4},
            "eval": {"slices": evaluated},
        }
    )


def assembled(file: StagedFile, folder: Path) -> Path:
    """As the agent does: part after part, each checked against its digest."""
    path = folder / file.destination
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as made:
        for part in file.parts(STORE):
            literal = b"\xff" * part.size_bytes if part.gap else part.literal
            data = literal if literal is not None else STORE.read(file.source.file.uri, part.offset, part.size_bytes)
            assert len(data) == part.size_bytes
            assert part.sha256 in (None, hashlib.sha256(part.before + data).hexdigest())
            made.write(data)
    return path


def staged_in(source: Path, recipe: Recipe, steps: int) -> StagedData:
    return staged_data(open_dataset(STORE, recipe, str(source)), recipe, steps)


def config(recipe: Recipe, steps: int, data: DataConfig) -> RunConfig:
    train = TrainConfig(steps=steps, global_batch=recipe.train.global_batch, micro_batch=4)
    model = ModelConfig(vocab_size=VOCAB, context_length=recipe.model.context_length)
    return RunConfig(model=model, data=data, train=train)


def both(source: Path, recipe: Recipe, steps: int, made: Path) -> tuple[RunConfig, RunConfig, StagedData]:
    """The run on the whole dataset, and on what is staged of it."""
    staged = staged_in(source, recipe, steps)
    window = staged.window or (recipe.data.start_token, recipe.data.tokens)
    places = {file.identity: str(assembled(file, made)) for file in staged.files}
    files = sorted(path for path in source.iterdir() if path.suffix != ".json")
    start, count = staged.validation_start_token, staged.validation_tokens
    chosen = recipe.data.validation
    whole = DataConfig(
        train_files=tuple(str(path) for path in files if path.name.startswith("train")),
        validation_files=tuple(str(path) for path in files if path.name.startswith("val")),
        start_token=recipe.data.start_token,
        tokens=recipe.data.tokens,
        order=recipe.data.order,
        validation_start_token=chosen.start_token if chosen else 0,
        validation_tokens=count,
    )
    part = DataConfig(
        train_files=tuple(places[file.identity] for file in staged.train),
        validation_files=tuple(places[file.identity] for file in staged.validation),
        start_token=window[0],
        tokens=window[1],
        order=recipe.data.order,
        validation_start_token=start,
        validation_tokens=count,
    )
    return config(recipe, steps, whole), config(recipe, steps, part), staged


def same_run(whole: RunConfig, part: RunConfig) -> bool:
    """The same batches at every step, and the same validation."""
    one, other = open_data(whole), open_data(part)
    for step in range(whole.train.steps):
        for a, b in zip(one.micro_batch(step, 0, 4), other.micro_batch(step, 0, 4), strict=True):
            if not torch.equal(a, b):
                return False
    if one.validation is None or other.validation is None:
        return one.validation is other.validation
    seen = []
    for held in (one.validation, other.validation):
        seen.append(held.stream.read(held.start, min(held.tokens + 1, len(held.stream) - held.start)).tolist())
    return bool(seen[0] == seen[1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["safetensors", "llmc", "nanogpt"]),
    shards=st.lists(st.integers(40, 900), min_size=1, max_size=3),
    val=st.sampled_from([0, 200]),
    digests=st.sampled_from(["", "sha256", "blocks"]),
    order=st.sampled_from(["sequential", "shuffled"]),
    start=st.sampled_from([0, 5, 37]),
    window=st.sampled_from([None, 100]),
    validation=st.sampled_from([None, {"start_token": 0, "tokens": 24}, {"start_token": 9, "tokens": 24}]),
    steps=st.integers(1, 6),
)
def test_the_staged_part_is_the_same_run(tmp_path_factory: pytest.TempPathFactory, **drawn: Any) -> None:
    folder = tmp_path_factory.mktemp("staged")
    publish(folder / "source", drawn["kind"], drawn["shards"], drawn["val"], digests=drawn["digests"])
    data = {"start_token": drawn["start"], "order": drawn["order"]}
    if drawn["window"] is not None:
        data["tokens"] = drawn["window"]
    if drawn["validation"] is not None:
        data["validation"] = drawn["validation"]
    recipe = recipe_of(folder / "source", drawn["steps"], **data)
    try:
        whole, part, staged = both(folder / "source", recipe, drawn["steps"], folder / "made")
    except UserError:
        assert sum(drawn["shards"]) < 37 + 101 + 2 * 25
        return
    assert same_run(whole, part)
    assert staged.needed_bytes <= staged.pulled_bytes <= 1.01 * staged.needed_bytes + 1024 * len(staged.files)


def test_a_prefix_is_the_window_and_one_more_and_block_borders_are_taken_where_they_cost_little(tmp_path: Path) -> None:
    publish(tmp_path / "s", "safetensors", [200_000], 500, digests="blocks")
    recipe = recipe_of(tmp_path / "s", 2000, validation={"start_token": 0, "tokens": 24})
    whole, part, staged = both(tmp_path / "s", recipe, 2000, tmp_path / "made")
    assert staged.needed_bytes == 2 * (2000 * 32 + 1) + 2 * 25
    assert staged.train[0].verified_by == "block list"
    assert staged.train[0].pulled_bytes - staged.train[0].needed_bytes < BLOCK
    assert same_run(whole, part)
    small = staged_in(tmp_path / "s", recipe_of(tmp_path / "s", 20), 20).train[0]
    assert small.pulled_bytes == small.needed_bytes and small.verified_by.startswith("block list (")
    all_of_it = staged_in(tmp_path / "s", recipe_of(tmp_path / "s", 8000), 8000).train[0]
    assert all_of_it.is_whole and all_of_it.verified_by == "block list"


@pytest.mark.parametrize("done", [0, 20, 21, 60, 99])
@pytest.mark.parametrize("kind", ["safetensors", "nanogpt"])
def test_a_run_that_resumes_pulls_what_is_left_and_reads_the_same_batches(tmp_path: Path, kind: str, done: int) -> None:
    publish(tmp_path / "s", kind, [900, 1200, 1500], 200)
    recipe = recipe_of(tmp_path / "s", 100, start_token=5)
    dataset = open_dataset(STORE, recipe, str(tmp_path / "s"))
    staged = staged_data(dataset, recipe, 100, done)
    read = 100 if done <= 20 else 20 + 100 - done
    needed, pulled = (sum(getattr(each, name) for each in staged.train) for name in ("needed_bytes", "pulled_bytes"))
    assert needed == pytest.approx(2 * 32 * read, abs=6) and pulled <= 1.01 * needed + 1024
    places = {file.identity: str(assembled(file, tmp_path / "made")) for file in staged.files}
    files = tuple(map(str, sorted((tmp_path / "s").glob("train-*"))))
    assert staged.window is not None
    whole = open_data(config(recipe, 100, DataConfig(train_files=files, start_token=5, tokens=3200)))
    start, tokens = staged.window
    part = open_data(
        config(recipe, 100, DataConfig(tuple(places[each.identity] for each in staged.train), (), start, tokens))
    )
    for step in (*range(20), *range(done, 100)):
        for ours, theirs in zip(part.micro_batch(step, 0, 4), whole.micro_batch(step, 0, 4), strict=True):
            assert torch.equal(ours, theirs)


def test_evaluation_slices_keep_their_positions_and_what_lies_between_cannot_be_read(tmp_path: Path) -> None:
    publish(tmp_path / "s", "nanogpt", [5000], 90_000)
    recipe = recipe_of(tmp_path / "s", 3, validation={"start_token": 0, "tokens": 24}, slices=((80_000, 160),))
    _, part, staged = both(tmp_path / "s", recipe, 3, tmp_path / "made")
    (held,) = staged.validation
    assert held.needed_bytes == held.pulled_bytes == 2 * (25 + 161)
    made = TokenStream.open([Path(part.data.validation_files[0])]).read(0, 80_161)
    original = np.fromfile(tmp_path / "s" / "val-00000.bin", dtype=np.uint16)
    assert len(made) == 80_161 and (made[80_000:] == original[80_000:80_161]).all()
    assert (made[25:80_000] == 65_535).all() and (made[:25] == original[:25]).all()
