"""The probe: its search on every card that could be, and the program on a CPU with good and bad configurations."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.files.small_runs import TINY
from trainer.arithmetic import divisors
from trainer.contract import RunConfig, TrainConfig
from trainer.probe import main, search, smallest_as_fast


@given(st.integers(1, 512), st.integers(0, 600), st.data())
def test_the_search_finds_the_largest_that_fits_wherever_it_starts(share: int, limit: int, data: st.DataObject) -> None:
    sizes = divisors(share)
    predicted = data.draw(st.sampled_from([None, *sizes]))
    tried: list[int] = []

    def peak_gib_of(size: int) -> float | None:
        tried.append(size)
        return size / 10 if size <= limit else None

    fitting = [size for size in sizes if size <= limit]
    expected = (fitting[0], fitting[0] / 10) if fitting else None
    assert search(sizes, predicted, peak_gib_of) == expected
    assert len(tried) == len(set(tried))
    if expected is not None and predicted == expected[0]:
        assert len(tried) <= 2


@given(st.integers(1, 96), st.lists(st.floats(0.5, 2.0), min_size=4, max_size=4))
def test_the_smallest_micro_batch_within_2_percent_of_the_best_is_taken(share: int, seconds: list[float]) -> None:
    sizes = divisors(share)[:4]
    known = dict(zip(sizes, seconds, strict=False))
    asked: list[int] = []

    def step_s_of(size: int) -> float:
        asked.append(size)
        return known[size]

    size, step_s = smallest_as_fast(sizes, step_s_of)
    best_s = min(known[each] for each in asked)
    assert step_s == known[size]
    assert best_s >= 0.98 * step_s
    assert asked == sizes[: len(asked)]  # each is timed once, the largest first
    assert not [each for each in asked if each < size and best_s >= 0.98 * known[each]]


@pytest.mark.parametrize(
    ("step_s", "taken"),
    [
        ({48: 1.00, 24: 1.01, 12: 1.015, 6: 1.3}, 12),
        ({48: 1.00, 24: 1.05, 12: 1.0, 6: 1.0}, 48),  # slower once: smaller ones are not even timed
        ({48: 1.10, 24: 1.00, 12: 1.03, 6: 1.3}, 24),
    ],
)
def test_a_larger_micro_batch_must_gain_something(step_s: dict[int, float], taken: int) -> None:
    assert smallest_as_fast(list(step_s), step_s.__getitem__)[0] == taken


def small(**train: int) -> RunConfig:
    return RunConfig(model=TINY, train=TrainConfig(**{"steps": 10, "global_batch": 24, **train}, precision="fp32"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, object]], str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize(("configured", "ranks", "expected"), [(8, 2, 6), (12, 2, 12), (1, 3, 1), (100, 4, 6)])
def test_on_a_cpu_the_rate_of_the_next_divisor_is_measured(
    capsys: pytest.CaptureFixture[str], configured: int, ranks: int, expected: int
) -> None:
    config = small(micro_batch=configured)
    code, lines, _ = run(capsys, "--config", config.to_json(), "--ranks", ranks, "--device", "cpu")
    assert code == 0
    result = lines[-1]
    assert result["micro_batch"] == expected
    assert result["accumulation"] == 24 // ranks // expected
    assert result["peak_gib"] is None
    assert isinstance(result["tokens_per_second"], int)
    assert result["tokens_per_second"] > 100


def test_a_run_folder_or_a_file_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(small(micro_batch=4).to_json())
    for given_as in (tmp_path, tmp_path / "config.json"):
        code, lines, _ = run(capsys, "--config", given_as, "--device", "cpu")
        assert code == 0
        assert lines[-1]["micro_batch"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


@pytest.mark.parametrize(
    ("config", "ranks", "message"),
    [
        (small(global_batch=10).to_json(), 3, "a global batch of 10 does not divide into 3 ranks"),
        ('{"train": {"global_bach": 3}}', 1, "unknown key train.global_bach (did you mean global_batch?)"),
        ("no-such-folder", 1, "no-such-folder"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], config: str, ranks: int, message: str) -> None:
    code, lines, err = run(capsys, "--config", config, "--ranks", ranks)
    assert code == 1
    assert lines == []
    assert message in err
    assert err.count("\n") == 1


def test_a_card_that_is_asked_for_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, err = run(capsys, "--config", small(micro_batch=4).to_json(), "--device", "cuda")
    assert (code == 0) == torch.cuda.is_available()
    assert lines or "torch sees no usable card" in err
