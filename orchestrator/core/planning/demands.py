"""What a run demands of a machine before it trains: an environment to install, and main memory.

Pure. Sizes and rates of installing are estimates; the machine's driver decides which build it gets.

Example: `install(None, machine_type("8xA100-40GB")).most_bytes`
"""

from __future__ import annotations

from orchestrator.agent.contract import torch_builds
from orchestrator.agent.contract.names import COMPILE_WORKERS
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.formats import duration, size
from orchestrator.core.machines import MachineType, assumed
from orchestrator.core.planning.batch import Batch
from orchestrator.core.planning.plan import PlanInstall, PlanMemory
from orchestrator.core.planning.rates import is_compiled
from trainer.arithmetic.host_memory import Shares, host_memory


def install(host: HostSpec | None, machine: MachineType) -> PlanInstall | None:
    """The environment that a machine without one gets; None where `python` of the host is taken."""
    if host is not None and host.python is not None:
        return None
    builds = _builds(machine)
    if not builds:
        return None
    most = max(build.download_bytes for build in builds)
    rate = assumed().install_mb_per_s.of(host.provider if host else "", host is None or host.paid)
    return PlanInstall(
        torch=tuple(f"{build.version}+{build.name}" for build in builds),
        least_bytes=min(build.download_bytes for build in builds),
        most_bytes=most,
        seconds=most / (rate * 1e6),
    )


def _builds(machine: MachineType) -> list[torch_builds.Build]:
    if not machine.cuda or machine.gpu is None:
        return [torch_builds.CPU]
    capability = machine.gpu.capability
    return torch_builds.possible([capability] if capability else [])


def memory(recipe: Recipe, machine: MachineType, batch: Batch) -> PlanMemory:
    """Main memory at the run's peak."""
    train = recipe.train
    shares = Shares(
        ranks=batch.ranks,
        micro_batch=batch.micro_batch,
        on_gpu=machine.cuda,
        compile_workers=COMPILE_WORKERS if is_compiled(recipe, machine) else 0,
        precision=train.precision,
        optimizer=train.optimizer,
        activation_checkpointing=train.activation_checkpointing,
    )
    return PlanMemory(**host_memory(recipe.model.config(), shares)._asdict())


def install_words(wanted: PlanInstall) -> str:
    """`torch 2.13.0+cu130 or 2.13.0+cu126, by the driver: 2.0 GB to 2.9 GB to download, 1m 12s`."""
    least, most = size(wanted.least_bytes), size(wanted.most_bytes)
    which = " or ".join(wanted.torch) + (", by the driver" if len(wanted.torch) > 1 else "")
    much = most if least == most else f"{least} to {most}"
    return f"torch {which}: {much} to download, {duration(wanted.seconds)}, where no interpreter serves"


def memory_words(needed: PlanMemory, ranks: int) -> str:
    """`25.7 GB of the host: 8 x 3.0 GB, checkpoints 2.0 GB; token files are mapped, not counted`."""
    each, copied = size(needed.process_bytes), size(needed.checkpoint_bytes)
    parts = f"{ranks} x {each} for processes, {copied} for checkpoints"
    return f"{size(needed.total_bytes)} of main memory: {parts}; token files are mapped and not counted"
