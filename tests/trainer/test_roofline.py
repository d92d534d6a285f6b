"""The roofline against what others published, and by its own rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.files.published_rates import ROWS, Row, mean_ratio
from trainer.arithmetic.roofline import Card, Job, step_seconds, tokens_per_second
from trainer.contract import ModelConfig

A100 = Card(312e12, 1.555e12, 230e9, 0.6, 0.42)
SMALL = ModelConfig()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.by}, {row.machine}")
def test_each_published_figure_is_met_within_its_stated_uncertainty(row: Row) -> None:
    assert abs(row.error) <= row.uncertainty, row.error


def test_on_average_the_roofline_promises_no_more_than_was_reached() -> None:
    assert 0.95 <= mean_ratio() <= 1.1


def test_no_published_figure_of_plain_pytorch_without_fused_attention_is_above_the_prediction() -> None:
    assert all(row.ratio > 1 for row in ROWS if row.extra.bytes)


def spread(job: Job, nodes: int) -> Job:
    """The job on so many machines of the same kind."""
    return job._replace(nodes=nodes, ranks=job.ranks * nodes)


ON_ONE = st.builds(
    Job,
    ranks=st.integers(1, 16),
    micro_batch=st.integers(1, 64),
    accumulation=st.integers(1, 16),
    compiled=st.booleans(),
    half=st.booleans(),
    optimizer=st.sampled_from(["adamw", "muon"]),
    clips=st.booleans(),
    activation_checkpointing=st.booleans(),
    sharded=st.booleans(),
    zero=st.booleans(),
    reduce_bytes=st.sampled_from([2, 4]),
    loss_chunks=st.sampled_from([1, 2, 4, 8]),
    nodes=st.just(1),
    network_bytes_per_s=st.floats(1e8, 1e11),
    network_latency_s=st.floats(0, 1e-3),
)
JOBS = st.builds(spread, ON_ONE, st.integers(1, 4))


@given(JOBS)
def test_the_parts_are_the_whole_and_none_is_negative(job: Job) -> None:
    step = step_seconds(SMALL, job, A100)
    assert step.total == pytest.approx(sum(step.parts.values()))
    assert all(seconds >= 0 for seconds in step.parts.values())


@given(JOBS)
def test_nothing_makes_a_step_faster_that_costs_something(job: Job) -> None:
    rate = tokens_per_second(SMALL, job, A100)
    assert tokens_per_second(SMALL, job._replace(activation_checkpointing=True), A100) <= rate
    assert tokens_per_second(SMALL, job._replace(clips=True), A100) <= rate
    whole = job._replace(zero=False)  # under ZeRO Muon gathers half as many bytes of what it trains
    assert tokens_per_second(SMALL, whole._replace(optimizer="muon"), A100) <= tokens_per_second(
        SMALL, whole._replace(optimizer="adamw"), A100
    )
    assert tokens_per_second(SMALL, job._replace(compiled=False), A100) <= tokens_per_second(
        SMALL, job._replace(compiled=True), A100
    )
    assert tokens_per_second(ModelConfig(dropout=0.1), job, A100) <= rate


@given(JOBS)
def test_what_spares_traffic_never_costs(job: Job) -> None:
    rate = tokens_per_second(SMALL, job, A100)
    assert tokens_per_second(SMALL, job._replace(loss_chunks=1), A100) >= rate
    assert tokens_per_second(SMALL, job._replace(reduce_bytes=2), A100) >= rate


@given(JOBS)
def test_clipping_is_folded_into_fused_adamw_and_a_pass_over_what_muon_trains(job: Job) -> None:
    plain, clipped = (
        step_seconds(SMALL, job._replace(clips=clips), A100).parts["optimizer"] for clips in (False, True)
    )
    assert (clipped > plain) is (job.optimizer == "muon")


@given(JOBS.filter(lambda job: not job.sharded))
def test_zero_steps_a_share_and_pays_with_a_gather_that_nothing_hides(job: Job) -> None:
    whole, shared = (step_seconds(SMALL, job._replace(zero=zero), A100).parts for zero in (False, True))
    if job.ranks == 1:
        assert whole == shared
        return
    assert shared["optimizer"] < whole["optimizer"]
    if job.optimizer == "adamw" and job.reduce_bytes == 4:
        assert shared["all_reduce"] >= whole["all_reduce"] * 0.999999


@given(JOBS, st.floats(1.0, 4.0))
def test_a_better_card_is_not_slower(job: Job, factor: float) -> None:
    rate = tokens_per_second(SMALL, job, A100)
    for field in ("peak_flops", "memory_bytes_per_s", "link_bytes_per_s"):
        better = A100._replace(**{field: getattr(A100, field) * factor})
        assert tokens_per_second(SMALL, job, better) >= rate * 0.999999
    assert tokens_per_second(SMALL, job, A100) <= A100.peak_flops * job.ranks / 5e8


@given(JOBS)
def test_more_accumulation_in_place_of_micro_batches_never_gains(job: Job) -> None:
    split = job._replace(micro_batch=1, accumulation=job.accumulation * job.micro_batch)
    assert tokens_per_second(SMALL, split, A100) <= tokens_per_second(SMALL, job, A100) * 1.000001


def test_a_tiny_model_waits_for_the_host() -> None:
    tiny = ModelConfig(vocab_size=257, context_length=128, n_layer=4, n_head=4, n_embd=96)
    step = step_seconds(tiny, Job(1, 16), A100)
    assert step.parts["host"] > step.total / 2
