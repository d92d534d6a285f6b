"""Machine types: bundled, composed, detected, and their dated prices."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import UserError
from orchestrator.core.machines import (
    all_machine_types,
    bundled_offers,
    gpu_by_smi_name,
    local_machine,
    machine_type,
)


def test_the_bundled_machines_have_cards_and_peaks() -> None:
    names = [machine.name for machine in all_machine_types()]
    assert {"1x3090", "8x4090", "1xA10G", "1xT4", "8xA100-40GB", "8xA100-80GB", "1xH100", "8xH100", "8xH200"} < set(
        names
    )
    assert all(
        machine.gpu and machine.gpu.memory_gib >= 4 and machine.ranks == machine.count
        for machine in all_machine_types()
        if machine.runs_as is None
    )


def test_a_simulated_machine_costs_as_the_real_one_and_computes_on_this_computer() -> None:
    simulated, real = machine_type("8xA100-40GB-simulated"), machine_type("8xA100-40GB")
    assert (simulated.gpu, simulated.gpus) == (real.gpu, 8)
    assert (simulated.ranks, simulated.cuda) == (2, False)


def test_another_number_of_a_known_card_and_cpu_ranks_are_machine_types() -> None:
    four = machine_type("4xH100")
    assert four.gpu == machine_type("8xH100").gpu
    assert (four.count, four.gpus, four.cuda) == (4, 4, True)
    cpu = machine_type("4xCPU")
    assert (cpu.ranks, cpu.gpus, cpu.cuda, cpu.gpu) == (4, 0, False, None)


@pytest.mark.parametrize(
    "name", ["8xA100", "0xH100", "99xH100", "xH100", "8xCUP", "", "8xH100\n", "$(x)", "1x", "65xCPU"]
)
def test_an_unknown_machine_lists_the_known(name: str) -> None:
    with pytest.raises(UserError, match="8xA100-40GB"):
        machine_type(name)


@pytest.mark.parametrize(
    ("smi", "card"),
    [
        ("NVIDIA H200", "H200-SXM5-141GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM5-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce GTX 1660", "GTX 1660"),
        ("NVIDIA GeForce RTX 3050 Laptop GPU", "RTX 3050 Laptop"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("NVIDIA GeForce RTX 4060", "RTX 4060"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_nvidia_smi_names_find_their_card(smi: str, card: str) -> None:
    found = gpu_by_smi_name(smi)
    assert found is not None
    assert found.name == card


@pytest.mark.parametrize("smi", ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA H100 SXM5 64GB", "NVIDIA", ""])
def test_a_similar_name_is_another_card(smi: str) -> None:
    assert gpu_by_smi_name(smi) is None


def test_this_machine_is_what_nvidia_smi_lists() -> None:
    assert local_machine(["NVIDIA H200"], cpus=16) == machine_type("1xH200")
    assert local_machine([], cpus=8).name == "2xCPU"
    assert local_machine([], cpus=1).name == "1xCPU"


def test_a_card_nobody_knows_keeps_its_memory_and_its_name_finds_it_again() -> None:
    machine = local_machine(["NVIDIA GeForce RTX 3090 Ti"] * 2, cpus=8, memory_gib=23.99)
    assert machine.name == "2xGPU-24GB"
    assert machine == machine_type("2xGPU-24GB")
    assert machine.gpu is not None
    assert (machine.gpu.memory_gib, machine.gpu.peak_flops("bf16")) == (24, 0)


def test_of_two_kinds_of_card_the_smaller_one_counts() -> None:
    assert local_machine(["NVIDIA H200", "NVIDIA H100 80GB HBM3"], cpus=8).name == "2xH100"


def test_a_card_without_bf16_answers_with_fp16() -> None:
    card = machine_type("1xT4").gpu
    assert card is not None
    assert not card.has_bf16
    assert card.peak_flops("bf16") == card.peak_flops("fp16") == 65e12
    assert card.peak_flops("fp32", tf32=True) == 8.1e12


def test_tf32_counts_half_of_bf16() -> None:
    card = machine_type("8xA100-40GB").gpu
    assert card is not None
    assert (card.peak_flops("fp32", tf32=True), card.peak_flops("fp32")) == (156e12, 19.5e12)


def test_bundled_prices_carry_their_date() -> None:
    offers = {offer.provider: offer for offer in bundled_offers("8xA100-40GB")}
    assert offers["lambda"].price_per_hour_usd == 15.92
    assert offers["lambda"].source == "bundled 2026-08-18"
    assert offers["ec2"].sku == "p4d.24xlarge"
    assert bundled_offers("1x3090") == ()


def test_every_card_has_what_the_roofline_asks_for() -> None:
    for machine in all_machine_types():
        gpu = machine.gpu
        assert gpu is not None
        assert gpu.memory_gb_per_s > 0 and gpu.link_gb_per_s > 0
        assert 0 < gpu.gemm < 1 and 0 < gpu.attention < 1
        assert gpu.smi


@pytest.mark.parametrize(
    ("smi", "name"),
    [
        ("NVIDIA A100-PCIE-40GB", "1xA100-PCIe-40GB"),
        ("NVIDIA A100 80GB PCIe", "1xA100-PCIe-80GB"),
        ("NVIDIA H100 PCIe", "1xH100-PCIe"),
        ("NVIDIA H100 NVL", "1xH100-NVL"),
        ("NVIDIA GH200 480GB", "1xGH200"),
        ("NVIDIA A10", "1xA10"),
        ("NVIDIA A10G", "1xA10G"),
        ("NVIDIA RTX A6000", "1xA6000"),
        ("NVIDIA L40S", "1xL40S"),
        ("NVIDIA GeForce RTX 5070 Ti", "1x5070Ti"),
        ("NVIDIA GeForce RTX 5090", "1x5090"),
    ],
)
def test_a_card_is_known_by_what_nvidia_smi_calls_it(smi: str, name: str) -> None:
    assert local_machine([smi], cpus=8).name == name
    assert machine_type(name.replace("1x", "4x")).count == 4
