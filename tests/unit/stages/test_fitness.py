"""Which cards of a machine train, told by what nvidia-smi shows; and what helps where it shows too few."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import MachineUnfit
from orchestrator.core.machines import machine_type
from orchestrator.stages.machine.fitness import check_folder, chosen_cards


def card(index: int, name: str, mib: int | None, *, busy: bool = False, mig: bool = False) -> dict[str, Any]:
    """A row of nvidia-smi, as the agent tells it."""
    processes = [{"pid": 1, "name": "Xorg", "memory_mib": 90}] if busy else []
    return {
        "index": index, "uuid": f"GPU-{index}", "name": f"NVIDIA {name}", "memory_total_mib": mib,
        "memory_used_mib": 90 if busy else 1, "mig": mig, "processes": processes,
    }  # fmt: skip


def chosen(machine: str, *found: dict[str, Any], said: str = "", gpus: tuple[int | str, ...] = ()) -> list[str]:
    facts: Any = {"gpus": list(found), "gpu_trouble": said, "cpus": 8}
    return chosen_cards(facts, HostSpec(name="box", machine=machine, gpus=gpus), machine_type(machine))


RTX = card(0, "GeForce RTX 3090", 24576)
SECOND = card(1, "GeForce RTX 3090", 24576)
BUSY = card(0, "GeForce RTX 3090", 24576, busy=True)
DISPLAY = card(1, "GeForce GT 710", 2048, busy=True)


@pytest.mark.parametrize(
    ("machine", "found", "gpus", "uuids"),
    [
        ("1x3090", [RTX, DISPLAY], (), ["GPU-0"]),
        ("1x3090", [card(0, "Quadro K600", 1024), SECOND], (), ["GPU-1"]),
        ("1x3090", [BUSY, SECOND], (), ["GPU-1"]),  # the desktop's card is second choice
        ("2x3090", [BUSY, SECOND], (), ["GPU-1", "GPU-0"]),
        ("1x3090", [RTX, card(1, "GeForce RTX 4090", 24564)], (), ["GPU-0"]),
        ("1x3090", [card(0, "GeForce RTX 3090 Ti", 24564)], (), ["GPU-0"]),  # no kind of ours, and the memory of it
        ("1xGPU-12GB", [card(0, "GeForce RTX 2060", 12288), DISPLAY], (), ["GPU-0"]),
        ("1xGPU-24GB", [RTX], (), ["GPU-0"]),
        ("1xH100", [card(0, "H100 80GB HBM3", 81559)], (), ["GPU-0"]),
        ("1x3090", [RTX, SECOND], (1,), ["GPU-1"]),
        ("2x3090", [RTX, SECOND], ("GPU-1", 0), ["GPU-1", "GPU-0"]),
        ("1xGPU-10GB", [card(0, "A100-SXM4-40GB", 40960, mig=True)], ("MIG-7f",), ["MIG-7f"]),
        ("2xCPU", [RTX], (), []),
        ("8xA100-40GB-simulated", [], (), []),
    ],
)
def test_the_cards_that_train(machine: str, found: Any, gpus: tuple[int | str, ...], uuids: list[str]) -> None:
    assert chosen(machine, *found, gpus=gpus) == uuids


@pytest.mark.parametrize(
    ("machine", "found", "said", "gpus", "words", "hint"),
    [
        ("1x3090", [card(0, "GeForce RTX 2060", 12288)], "", (), "0: NVIDIA GeForce RTX 2060, 12 GiB", "1xGPU-12GB"),
        ("1x3090", [card(0, "GeForce RTX 4090", 24564)], "", (), "0 of 1 cards for 1x3090", "1x4090"),
        ("2x3090", [RTX], "GPU 1 is lost: [GPU is lost]", (), "1 of 2 .* GPU 1 is lost", "reboot"),
        ("1x3090", [], "Failed to initialize NVML: Driver/library version mismatch", (), "version mismatch", "reboot"),
        ("1x3090", [], "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", (),
         "couldn't communicate", "driver is not loaded"),
        ("1x3090", [], "nvidia-smi gave no answer within 30 s", (), "no answer", "hangs"),
        ("1x3090", [], "No devices were found", (), "No devices", "dmesg"),
        ("1x3090", [], "an NVIDIA card is on the PCI bus, and nvidia-smi is not installed", (), "PCI", "install"),
        ("1x3090", [], "", (), "no card that answers", "WSL2"),
        ("1xH100", [card(0, "H100 80GB HBM3", 81559, mig=True)], "", (), "split by MIG", "-mig 0"),
        ("1x3090", [RTX], "", (3,), "names 3, which is not there", "correct `gpus`"),
        ("1x3090", [RTX, SECOND], "", (0, 1), "names 2 cards, and 1x3090 has 1", "correct `gpus`"),
    ],
)  # fmt: skip
def test_too_few_cards_are_told_with_what_helps(
    machine: str, found: Any, said: str, gpus: tuple[int | str, ...], words: str, hint: str
) -> None:
    with pytest.raises(MachineUnfit, match=words) as refused:
        chosen(machine, *found, said=said, gpus=gpus)
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("said", "builds", "words"),
    [
        ({"write": "Disk quota exceeded", "lock": "", "run": ""}, False, "cannot be written to: Disk quota exceeded"),
        ({"write": "", "lock": "No locks available", "run": ""}, False, "without locks"),
        ({"write": "", "lock": "", "run": "Permission denied"}, True, "noexec"),
        ({"write": "", "lock": "", "run": "Permission denied"}, False, ""),
        ({"write": "", "lock": "", "run": ""}, True, ""),
    ],
)
def test_a_folder_that_cannot_hold_a_run(said: dict[str, str], builds: bool, words: str) -> None:
    facts: Any = {"root": "/home/me/.gptctl", "folder": said}
    host = HostSpec(name="box", machine="2xCPU")
    if words:
        with pytest.raises(MachineUnfit, match=words) as refused:
            check_folder(facts, host, builds=builds)
        assert "`folder`" in refused.value.hint
    else:
        check_folder(facts, host, builds=builds)
