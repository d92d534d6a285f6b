"""Host memory of checkpoints: what comes back is equal, the memory is the same each time, and nothing overlaps."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.arithmetic import checkpoint_bytes
from trainer.checkpoints.host_buffers import ALIGNMENT, HostBuffers, placed
from trainer.contract import ModelConfig
from trainer.model.gpt import GPT


@given(st.lists(st.integers(0, 1000), max_size=40))
def test_places_fit_and_do_not_overlap(sizes: list[int]) -> None:
    places, ends = placed(sizes, 1024)
    taken = sorted((*place, size) for place, size in zip(places, sizes, strict=True) if size)
    for (block, offset, size), following in zip(taken, [*taken, None][1:], strict=True):
        assert offset % ALIGNMENT == 0
        assert offset + size <= ends[block] <= 1024
        if following is not None and following[0] == block:
            assert offset + size <= following[1]


def state() -> dict[str, object]:
    return {
        "optimizer": {"a": {"step": torch.tensor(3.0), "m": torch.randn(7, 5)}, "b": {"m": torch.randn(300)}},
        "half": torch.randn(9).to(torch.bfloat16),
        "empty": torch.empty(0, 3),
        "scaler": {"scale": 2.0},
    }


def test_a_copy_is_equal_and_does_not_follow_the_original() -> None:
    buffers, original = HostBuffers(1 << 10), state()
    copied = buffers.copy(original)
    saved, loaded = io.BytesIO(), io.BytesIO()
    torch.save(original, saved)
    torch.save(copied, loaded)
    loaded.seek(0)
    again = torch.load(loaded)
    torch.testing.assert_close(again, original, rtol=0, atol=0)
    original["half"].zero_()  # type: ignore[attr-defined]
    assert copied["half"].any()  # type: ignore[attr-defined]


def test_torch_saves_the_tensors_and_not_the_block_around_them() -> None:
    copied = HostBuffers(1 << 20).copy({"x": torch.ones(10)})
    file = io.BytesIO()
    torch.save(copied, file)
    assert len(file.getvalue()) < 4096


def test_the_second_save_takes_the_same_memory() -> None:
    buffers, original = HostBuffers(1 << 10), state()
    first = buffers.copy(original)
    where, taken = first["half"].data_ptr(), buffers.size_bytes  # type: ignore[attr-defined]
    second = buffers.copy(original)
    assert second["half"].data_ptr() == where  # type: ignore[attr-defined]
    assert buffers.size_bytes == taken


MODELS = (ModelConfig(), ModelConfig(tie_embeddings=True), ModelConfig(n_layer=24, n_head=16, n_embd=1024))


@pytest.mark.parametrize("model", MODELS)
def test_the_blocks_of_a_real_model_waste_little(model: ModelConfig) -> None:
    with torch.device("meta"):
        tensors = list(GPT(model).parameters())
    sizes = [tensor.nbytes for tensor in tensors for _ in range(3)]
    _, ends = placed(sizes, 1 << 28)
    rounded = sum(1 << (end - 1).bit_length() for end in ends)
    assert rounded <= 1.17 * checkpoint_bytes(model)
