"""Where machines come from: one folder, one provider. A new folder is a new provider; nothing else has to know it.

A folder's name is the provider's, with `_host` or `_cloud` after a word that is taken (`ssh_host` is `ssh`). Each has
`provider.py` with `provider(host, machine) -> Provider`.

Example: `load("ssh").provider(host, machine).machines()`
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

from orchestrator.core import ports
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.engine import Engine, JobOrder
from orchestrator.core.errors import UserError
from orchestrator.core.machines import MachineType
from orchestrator.core.suggest import did_you_mean, one_of


class ProviderModule(Protocol):
    """What the `provider.py` of a folder offers."""

    def provider(self, host: HostSpec, machine: MachineType) -> ports.Provider: ...


class EngineModule(ProviderModule, Protocol):
    """That of a provider whose machines are behind a queue of jobs."""

    def script(self, host: HostSpec, order: JobOrder) -> str: ...
    def engine(self, host: HostSpec, shell: ports.Shell, asks_s: float = ..., since: float | None = ...) -> Engine: ...


def known() -> dict[str, str]:
    """Provider name -> folder name, by listing this folder. Imports none of them."""
    modules = [found.name for found in pkgutil.iter_modules(__path__)]
    return {name.removesuffix("_host").removesuffix("_cloud"): name for name in modules}


def load(name: str) -> ProviderModule:
    """The module of a provider. Raises UserError listing the known ones."""
    modules = known()
    if name not in modules:
        raise UserError(
            f"unknown provider {name!r}{did_you_mean(name, modules)}; known: {one_of(modules)}",
            hint="correct `provider` in the inventory",
        )
    return cast(ProviderModule, importlib.import_module(f"{__name__}.{modules[name]}.provider"))


def load_engine(name: str) -> EngineModule | None:
    """The module of a provider that takes jobs; None for one that sells machines."""
    module = load(name)
    return cast(EngineModule, module) if hasattr(module, "engine") else None
