"""The arithmetic against published figures, against the model itself, and over hostile numbers."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.arithmetic import (
    checkpoint_bytes,
    chinchilla_tokens,
    divisors,
    fewest_loss_chunks,
    flop_per_token,
    largest_micro_batch,
    loss_chunk_rows,
    matmul_parameters,
    memory_gib,
    parameter_count,
    split_batch,
    steps_for,
)
from trainer.contract import ModelConfig, TrainConfig
from trainer.model.gpt import GPT

SMALL = ModelConfig()
TIED = replace(SMALL, tie_embeddings=True)


def test_published_figures_of_gpt2_small() -> None:
    assert parameter_count(SMALL) == 163_009_536
    assert parameter_count(TIED) == 124_412_160
    assert matmul_parameters(SMALL) == matmul_parameters(TIED) == 123_532_032
    assert flop_per_token(SMALL) == 854_438_400
    assert chinchilla_tokens(SMALL) == 3_260_190_720
    assert steps_for(3_260_190_720, 96, 1024) == 33_165
    assert steps_for(3_260_190_720, 96, 1024) * 96 * 1024 == 3_260_252_160
    assert round(checkpoint_bytes(SMALL) / 1e9, 2) == 1.96
    assert round(checkpoint_bytes(SMALL, weights_only=True) / 1e9, 2) == 0.65


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("out_bias", [None, False, True])
def test_parameter_count_is_the_models_own(tied: bool, qkv_bias: bool, bias: bool, out_bias: bool | None) -> None:
    config = ModelConfig(300, 16, 3, 2, 32, qkv_bias=qkv_bias, bias=bias, tie_embeddings=tied)
    config = replace(config, attention_out_bias=out_bias)
    weights = GPT(config).unpadded_state().values()
    assert parameter_count(config) == sum(weight.numel() for weight in weights)


def test_steps_are_rounded_up_never_down() -> None:
    assert [steps_for(tokens, 2, 8) for tokens in (1, 15, 16, 17)] == [1, 1, 1, 2]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        steps_for(0, 2, 8)


@given(st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 512))
def test_a_batch_splits_whole_or_the_nearest_is_named(global_batch: int, ranks: int, micro_batch: int) -> None:
    try:
        assert split_batch(global_batch, ranks, micro_batch) * ranks * micro_batch == global_batch
    except ValueError as error:
        nearest = int(str(error).rpartition(" ")[2])
        assert split_batch(nearest, ranks, micro_batch) >= 1
        assert abs(nearest - global_batch) <= max(ranks * micro_batch / 2, ranks * micro_batch - global_batch)


def test_the_message_of_an_impossible_batch() -> None:
    with pytest.raises(ValueError, match=r"96 does not divide into 8 ranks x micro-batch 10 = 80; .* is 80$"):
        split_batch(96, 8, 10)
    with pytest.raises(ValueError, match="must be at least 1"):
        split_batch(96, 0, 10)


@pytest.mark.parametrize(("free_gib", "fewest", "most"), [(23.5, 24, 48), (39.0, 48, 96), (79.0, 96, 96)])
def test_micro_batches_of_real_cards_are_sane(free_gib: float, fewest: int, most: int) -> None:
    """The unfused reference trainer reaches 6 on 24 GB, 13 on 40 GB and 28 on 80 GB; a fused one several times that."""
    found = largest_micro_batch(SMALL, 96, free_gib)
    assert found is not None
    assert fewest <= found <= most


def test_a_card_too_small_is_none_and_checkpointing_helps_it() -> None:
    assert largest_micro_batch(SMALL, 96, 3.0) is None
    assert largest_micro_batch(TIED, 96, 5.5) is not None
    plain, checkpointed = (largest_micro_batch(TIED, 96, 5.5, activation_checkpointing=c) for c in (False, True))
    assert (checkpointed or 0) > (plain or 0)


def test_a_job_that_ran_on_4_gb_is_not_refused() -> None:
    """Published: 124M tied, context 1,024, dropout 0.1, on an RTX 3050. Windows and the screen leave 3.9 GiB of 4."""
    assert memory_gib(replace(TIED, dropout=0.1), 1, "fp32", ranks=1) < 3.9
    assert memory_gib(replace(TIED, dropout=0.1), 1, "bf16", ranks=1) < 3.9


@given(st.integers(1, 64), st.sampled_from(["bf16", "fp16", "fp32"]), st.booleans())
def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing(batch: int, precision: str, muon: bool) -> None:
    optimizer = "muon" if muon else "adamw"
    one, more = (memory_gib(SMALL, size, precision, optimizer=optimizer) for size in (batch, batch + 1))
    assert 2.5 < one < more
    assert memory_gib(SMALL, batch, precision, activation_checkpointing=True) < memory_gib(SMALL, batch, precision)
    assert memory_gib(SMALL, batch, precision, optimizer="muon") < memory_gib(SMALL, batch, precision)


@given(st.integers(1, 5000))
def test_divisors_are_all_and_largest_first(number: int) -> None:
    found = divisors(number)
    assert found == sorted(found, reverse=True)
    assert set(found) == {d for d in range(1, number + 1) if number % d == 0}


@given(st.integers(1, 10**6), st.integers(128, 200_000))
def test_loss_chunks_are_few_and_whole_tiles(tokens: int, columns: int) -> None:
    rows = loss_chunk_rows(columns, tokens)
    assert rows % 128 == 0
    assert -(-tokens // rows) <= 8


def test_plan_needs_no_torch() -> None:
    program = "import sys, trainer.arithmetic; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@given(free_gib=st.floats(2, 141), micro_batch=st.integers(1, 96), ranks=st.integers(1, 8))
def test_loss_chunks_are_as_few_as_memory_allows(free_gib: float, micro_batch: int, ranks: int) -> None:
    train = TrainConfig()
    chunks = fewest_loss_chunks(SMALL, micro_batch, free_gib, train, ranks)
    assert chunks in {1, 2, 4, 8} and fewest_loss_chunks(SMALL, micro_batch, free_gib * 2, train, ranks) <= chunks
    assert chunks == 8 or memory_gib(SMALL, micro_batch, ranks=ranks, loss_chunks=chunks) <= 0.7 * free_gib
    assert fewest_loss_chunks(SMALL, micro_batch, free_gib, replace(train, precision="fp16"), ranks) == 8


@given(ranks=st.integers(2, 16), optimizer=st.sampled_from(["adamw", "muon"]))
def test_zero_holds_a_share_of_adamws_state(ranks: int, optimizer: str) -> None:
    whole, shared = (memory_gib(SMALL, 4, optimizer=optimizer, ranks=ranks, zero_stage=stage) for stage in (0, 1))
    assert shared < whole
    assert memory_gib(SMALL, 4, optimizer=optimizer, ranks=ranks + 1, zero_stage=1) < shared


XL = ModelConfig(n_layer=48, n_head=25, n_embd=1600, tie_embeddings=True, qkv_bias=True)


@given(ranks=st.integers(2, 64), size=st.integers(1, 8), checkpointing=st.booleans())
def test_fsdp_holds_a_share_of_everything(ranks: int, size: int, checkpointing: bool) -> None:
    ddp, fsdp, more = (
        memory_gib(XL, size, activation_checkpointing=checkpointing, ranks=count, parallel=parallel)
        for count, parallel in ((ranks, "ddp"), (ranks, "fsdp"), (ranks + 1, "fsdp"))
    )
    assert more < fsdp < ddp
    assert ddp - fsdp > 0.9 * 16 * 1.557e9 * (1 - 1 / ranks) / 2**30


def test_xl_fits_24_gb_only_when_it_is_cut() -> None:
    options = {"activation_checkpointing": True, "ranks": 8}
    assert largest_micro_batch(XL, 64, 23.4, **options) is None  # type: ignore[arg-type]
    assert largest_micro_batch(XL, 64, 23.4, parallel="fsdp", **options) == 32  # type: ignore[arg-type]
    assert memory_gib(XL, 1, ranks=1, parallel="fsdp") == memory_gib(XL, 1, ranks=1)
