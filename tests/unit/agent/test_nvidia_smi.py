"""What nvidia-smi prints, as the agent understands it: cards that answer, and its own words for the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.agent.system import gpus

GOOD = "0, GPU-a, NVIDIA GeForce RTX 3090, 24576, 1, 570.86.15, [N/A]"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], gpus.Look]:
    """`smi(script)`: a look at a machine whose nvidia-smi is this shell script; it is asked for processes as well."""
    monkeypatch.setattr(gpus, "PLACES", ())
    monkeypatch.setattr(gpus, "_on_the_bus", lambda: False)

    def look(script: str) -> gpus.Look:
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\ncase "$1" in --query-compute*) exit 0;; esac\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return gpus.look()

    return look


def test_a_card_that_answers(smi: Callable[[str], gpus.Look]) -> None:
    found = smi(f"echo '{GOOD}'")
    assert [(card["uuid"], card["mig"]) for card in found.gpus] == [("GPU-a", False)]
    assert (found.driver, found.said) == ("570.86.15", "")


@pytest.mark.parametrize(
    ("script", "uuids", "words"),
    [
        (f"echo 'Warning: infoROM is corrupted at gpu 0000:01:00.0'; echo '{GOOD}'", ["GPU-a"], "infoROM"),
        (f"echo '{GOOD}'; echo '1, GPU-b, [GPU is lost], [GPU is lost], [GPU is lost], 570.86.15, [N/A]'", ["GPU-a"],
         "GPU 1 is lost"),
        ("echo '0, GPU-a, NVIDIA H100, [Unknown Error], ERR!, 570.86.15, Disabled'", [], "GPU 0 is lost"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", [], "version mismatch"),
        ("echo 'Unable to determine the device handle for GPU0: 0000:01:00.0: GPU is lost.' >&2; exit 15", [],
         "handle"),
        ("echo 'No devices were found'; exit 6", [], "No devices were found"),
        ("exit 9", [], "code 9"),
    ],
)  # fmt: skip
def test_what_it_says_is_kept(smi: Callable[[str], gpus.Look], script: str, uuids: list[str], words: str) -> None:
    found = smi(script)
    assert [card["uuid"] for card in found.gpus] == uuids
    assert words in found.said


def test_one_that_hangs_is_named(smi: Callable[[str], gpus.Look], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DEADLINE_S", 0.3)
    assert "no answer within" in smi("exec sleep 5").said


def test_it_is_found_where_wsl_puts_it(
    smi: Callable[[str], gpus.Look], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(f"echo '{GOOD}'")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(gpus, "PLACES", (str(tmp_path),))
    assert [card["uuid"] for card in gpus.look().gpus] == ["GPU-a"]


def test_a_card_without_its_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "PLACES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(gpus, "_on_the_bus", lambda: True)
    assert "not installed" in gpus.look().said


def test_mig_is_seen(smi: Callable[[str], gpus.Look]) -> None:
    assert smi("echo '0, GPU-a, NVIDIA H100 80GB HBM3, 81559, 1, 570.86.15, Enabled'").gpus[0]["mig"]
