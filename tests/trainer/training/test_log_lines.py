"""What people read in the log."""

from __future__ import annotations

import pytest

from trainer.training.log_lines import event_line, metrics_line


def test_a_step_is_rounded_and_has_units() -> None:
    values = {
        "loss": 3.76947,
        "lr": 0.0005,
        "grad_norm": 2.71828,
        "tokens_per_second": 1490.7,
        "mfu": 0.0,
        "memory_gib": 0.364,
    }
    assert metrics_line(10, values) == "step 10  loss 3.7695  lr 5.00e-04  grad norm 2.72  1.49k tok/s  0.4 GiB"
    assert "MFU 38.2%" in metrics_line(10, {**values, "mfu": 0.3821})


@pytest.mark.parametrize(
    ("name", "fields", "line"),
    [
        ("validated", {"val_loss": 3.39601}, "step 10  validated  val loss 3.3960"),
        (
            "checkpointed",
            {"folder": "step-000010", "size_bytes": 6_141_581, "seconds": 0.382, "best": False},
            "step 10  checkpointed  step-000010  6.1 MB  0.4 s",
        ),
        (
            "started",
            {"parameters": 508_032, "compiled": False, "compile_fault": ""},
            "step 10  started  508k parameters",
        ),
        ("sampled", {"prompt": "def", "text": "a\nb"}, "step 10  sampled  prompt def  text a\\nb"),
        ("finished", {}, "step 10  finished"),
    ],
)
def test_an_event_says_only_what_it_knows(name: str, fields: dict[str, object], line: str) -> None:
    assert event_line(name, 10, fields) == line


def test_what_cannot_be_a_number_is_shown_as_it_is() -> None:
    assert metrics_line(1, {"loss": "nan", "other_key": [1]}) == "step 1  loss nan  other key [1]"
