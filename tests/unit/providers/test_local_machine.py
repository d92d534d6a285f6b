"""Host `local`: which of this computer's cards are its machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.wiring import detect_local_machine

TWO = "NVIDIA GeForce RTX 3090, 24576\n"


@pytest.mark.parametrize(
    ("said", "gpus", "memory_gib"),
    [
        (TWO * 2, 2, 24.0),
        ("NVIDIA T400, 2048\n" + TWO * 2, 2, 24.0),
        (TWO + "NVIDIA T400, 2048\n" + TWO, 2, 24.0),
        ("NVIDIA T400, 2048\n" * 3 + TWO, 1, 24.0),
        ("[GPU is lost], [N/A]\n" + TWO, 1, 24.0),
        ("", 0, 0.0),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 0, 0.0),
    ],
)
def test_a_display_card_beside_the_training_cards_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, gpus: int, memory_gib: float
) -> None:
    (tmp_path / "said").write_text(said)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    machine = detect_local_machine()
    assert (machine.gpus, machine.gpu.memory_gib if machine.gpu else 0.0) == (gpus, memory_gib)
