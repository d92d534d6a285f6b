"""Cards and machine types: what they have, what they cost. The facts: machines.toml.

It must not ask a machine or a provider anything; the caller passes the name of a detected card.

Example::

    machine_type("8xA100-40GB").gpu.memory_gib       # 40
    machine_type("2xCPU").ranks                      # 2, gloo
    local_machine(["NVIDIA H200"], cpus=16).name     # "1xH200"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.core.errors import UserError
from orchestrator.core.ports import Offer
from orchestrator.core.suggest import nearest, one_of
from orchestrator.core.typed_json import decode

FACTS = Path(__file__).with_name("machines.toml")
MOST_GPUS = 16
MOST_CPU_RANKS = 64
MOST_NODES = 32
SEVERAL = re.compile(r"([1-9][0-9]?)x([1-9][0-9]?x.+)")


@dataclass(frozen=True)
class Gpu:
    """One card. Peaks are dense TFLOP/s with fp32 accumulation; 0 where the card has none or it is unknown."""

    name: str
    memory_gib: float
    peak_bf16_tflops: float
    peak_fp16_tflops: float
    peak_fp32_tflops: float
    tdp_w: float
    memory_gb_per_s: float = 0.0
    link_gb_per_s: float = 0.0
    """What an all-reduce moves per card."""
    gemm: float = 0.6
    """Share of the peak that matrix products reach on tensor cores."""
    gemm_fp32: float = 0.65
    """The same of peak_fp32_tflops, which most cards count for two instructions at once."""
    attention: float = 0.4
    """Share of the peak that attention reaches."""
    smi: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    """NVIDIA's compute capability; None where it is unknown."""

    @property
    def has_bf16(self) -> bool:
        """Whether bf16 is computed in hardware. An unknown card counts as one that does."""
        return self.peak_bf16_tflops > 0 or self.peak_fp16_tflops == 0

    @property
    def has_tf32(self) -> bool:
        """Whether fp32 products can run on tensor cores: where bf16 does, since the A100."""
        return self.peak_bf16_tflops > 0

    def gemm_share(self, precision: str, tf32: bool = False) -> float:
        """Share of peak_flops() that matrix products reach in that precision."""
        return self.gemm_fp32 if precision == "fp32" and not (tf32 and self.has_tf32) else self.gemm

    def peak_flops(self, precision: str, tf32: bool = False) -> float:
        """Dense peak FLOP/s in that precision; 0 when unknown. A card without bf16 answers with fp16.

        With TF32, fp32 products count half of the bf16 peak: so it is on every card since the A100.
        """
        if precision == "fp32":
            return (self.peak_bf16_tflops / 2 if tf32 and self.has_tf32 else self.peak_fp32_tflops) * 1e12
        half = self.peak_bf16_tflops if precision == "bf16" and self.has_bf16 else self.peak_fp16_tflops
        return half * 1e12


@dataclass(frozen=True)
class MachineType:
    """A kind of machine: cards and their number. Without a card, `count` is the number of CPU ranks."""

    name: str
    gpu: Gpu | None
    count: int
    boot_minutes: float = 0.0
    """Usual minutes from purchase to a working SSH; 0 for machines that are not rented."""
    runs_as: str | None = None
    """A simulated machine computes as this one, such as `2xCPU`."""
    nodes: int = 1
    """Machines that train together, with `count` cards or ranks over all of them."""

    @property
    def node(self) -> MachineType:
        """The type of each node; itself where it is one."""
        return self if self.nodes == 1 else machine_type(self.name.partition("x")[2])

    @property
    def gpus(self) -> int:
        """Number of cards; 0 for a CPU machine."""
        return self.count if self.gpu else 0

    @property
    def ranks(self) -> int:
        """Processes torchrun starts here."""
        return machine_type(self.runs_as).ranks * self.nodes if self.runs_as else self.count

    @property
    def cuda(self) -> bool:
        """Whether the training computes on GPUs (a simulated machine does not)."""
        return self.gpu is not None and self.runs_as is None

    @property
    def board_power_w(self) -> float:
        """Watts under load: of one card, or of the whole machine where there is none."""
        return self.gpu.tdp_w if self.gpu else assumed().cpu_machine_w

    def peak_flops_per_gpu(self, precision: str, tf32: bool) -> float:
        """Dense peak FLOP/s of one rank's card; 0 when unknown and on CPU."""
        return self.gpu.peak_flops(precision, tf32) if self.gpu and self.cuda else 0.0


@dataclass(frozen=True)
class ByKind:
    """A figure for a rented machine, for one of your own over SSH, and for this one."""

    paid: float
    ssh: float
    local: float

    def of(self, provider: str, paid: bool) -> float:
        """The figure for a machine of that provider."""
        return self.paid if paid else self.local if provider == "local" else self.ssh


@dataclass(frozen=True)
class UnknownCard:
    """A card of which only the memory's size is known."""

    tflops: float
    memory_gb_per_s: float
    link_gb_per_s: float


@dataclass(frozen=True)
class Assumed:
    """Table [assumed] of machines.toml, whose comments say what each figure is."""

    many_cards: float
    unknown_card: UnknownCard
    cpu_gflops_per_rank: float
    cpu_machine_w: float
    boot_minutes: float
    provision_minutes: ByKind
    data_mb_per_s: ByKind
    install_mb_per_s: ByKind
    fetch_mb_per_s: ByKind
    link_gbit_per_s: float
    system_gib: int
    store_mb_per_s: float
    save_mb_per_s: float
    price_stale_days: float
    grid_kg_co2e_per_kwh: float


def all_machine_types() -> tuple[MachineType, ...]:
    """The bundled machine types, in the order of machines.toml."""
    return tuple(_bundled().values())


@cache
def machine_type(name: str) -> MachineType:
    """A machine by the name users type: bundled, `NxCPU`, another number of a known card such as `4xH100`, or
    `NxGPU-24GB` for a card of which only the memory is known. `2x8xH100` are two 8xH100 that train together.

    Raises UserError listing the known ones.
    """
    if name in _bundled():
        return _bundled()[name]
    if found := SEVERAL.fullmatch(name):
        node, nodes = machine_type(found[2]), int(found[1])
        if 2 <= nodes <= MOST_NODES and node.nodes == 1:
            return replace(node, name=name, count=node.count * nodes, nodes=nodes)
    match = re.fullmatch(r"([1-9][0-9]?)x([A-Za-z0-9-]{1,20})", name)
    count, card = (int(match[1]), match[2]) if match else (0, "")
    if card == "CPU" and count <= MOST_CPU_RANKS:
        return MachineType(name, None, count)
    if (memory := re.fullmatch(r"GPU-([1-9][0-9]{0,2})GB", card)) and count <= MOST_GPUS:
        return MachineType(name, Gpu(card, float(memory[1]), 0, 0, 0, 0), count)
    like = next((machine for machine in all_machine_types() if _card_word(machine) == card), None)
    if like is not None and count <= MOST_GPUS:
        return MachineType(name, like.gpu, count, like.boot_minutes)
    known = [*_bundled(), "2xCPU"]
    match_name = nearest(name, known)
    hint = (
        f"did you mean {match_name}?"
        if match_name
        else "another number of a known card works too, such as 4xH100, and 1xGPU-24GB for any other card"
    )
    raise UserError(f"unknown machine type {name!r}; known: {one_of(known, most=len(known))}", hint=hint)


def nodes_in(name: str) -> int:
    """How many machines a type of this name is: 2 of `2x8xH100`. Any name has an answer, unknown ones too."""
    found = SEVERAL.fullmatch(name)
    return int(found[1]) if found else 1


def several(name: str, nodes: int) -> str:
    """The name of so many machines of this type."""
    return name if nodes == 1 else f"{nodes}x{name}"


def of_all(offer: Offer, machine: MachineType) -> Offer:
    """The offer of one node as that of all: their type, and their price together."""
    return replace(offer, machine=machine.name, price_per_hour_usd=offer.price_per_hour_usd * machine.nodes)


def of_one(offer: Offer) -> Offer:
    """The offer of several nodes as that of each: what its provider sells."""
    machine = machine_type(offer.machine)
    return replace(offer, machine=machine.node.name, price_per_hour_usd=offer.price_per_hour_usd / machine.nodes)


def gpu_by_smi_name(name: str) -> Gpu | None:
    """The card nvidia-smi calls `name`, or None. Exact names only: an `RTX 3090 Ti` is not an `RTX 3090`."""
    short = name.strip().removeprefix("NVIDIA ")
    return next((gpu for gpu in _gpus().values() if short in gpu.smi), None)


def local_machine(gpu_names: Sequence[str], cpus: int, memory_gib: float = 0.0) -> MachineType:
    """This machine's type from what nvidia-smi lists; without a GPU two CPU ranks, or one on a single core.

    A card that is not in the table becomes `GPU-24GB` by its `memory_gib`, without a known peak. Of several kinds the
    one with the least memory speaks for all: every rank gets the same work.
    """
    if not gpu_names:
        return machine_type("2xCPU" if cpus > 1 else "1xCPU")
    cards = [card for name in gpu_names if (card := gpu_by_smi_name(name))]
    least = min(cards, key=lambda card: card.memory_gib) if len(cards) == len(gpu_names) else None
    known = (_card_word(machine) for machine in all_machine_types() if machine.gpu == least)
    return machine_type(f"{len(gpu_names)}x{next(known, f'GPU-{max(1, round(memory_gib))}GB')}")


def bundled_offers(machine: str) -> tuple[Offer, ...]:
    """Last known prices of a machine type, one per provider that sells it. They carry their date as source."""
    return tuple(offer for offer in _prices() if offer.machine == machine)


def bundled_offers_of(provider: str) -> tuple[Offer, ...]:
    """Last known prices of one provider: what it sells that we have a name for."""
    return tuple(offer for offer in _prices() if offer.provider == provider)


@cache
def assumed() -> Assumed:
    """The figures plan computes with where nothing is measured."""
    return decode(Assumed, _facts()["assumed"])


def _card_word(machine: MachineType) -> str:
    """`A100-40GB` of `8xA100-40GB`."""
    return machine.name.partition("x")[2]


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads(FACTS.read_text(encoding="utf-8"))


@cache
def _gpus() -> dict[str, Gpu]:
    return {name: decode(Gpu, {"name": name, **row}) for name, row in _facts()["gpus"].items()}


@cache
def _bundled() -> dict[str, MachineType]:
    rows = _facts()["machines"]
    return {name: MachineType(name, **{**row, "gpu": _gpus()[row["gpu"]]}) for name, row in rows.items()}


@cache
def _prices() -> tuple[Offer, ...]:
    return tuple(
        Offer(
            provider=table["provider"],
            machine=row["machine"],
            price_per_hour_usd=row["usd_per_hour"],
            sku=row["sku"],
            source=f"bundled {table['as_of']}",
        )
        for table in _facts()["prices"]
        for row in table["rows"]
    )
