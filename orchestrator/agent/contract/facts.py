"""The shapes of what the agent says about its machine: the answer to `facts`.

Example: `Disk(free_bytes=1 << 40, total_bytes=1 << 41)`
"""

from __future__ import annotations

from typing import Dict, List, TypedDict


class System(TypedDict):
    os: str
    kernel: str


class PythonProgram(TypedDict):
    path: str
    version: str


class Memory(TypedDict):
    total_bytes: int | None
    available_bytes: int | None


class Disk(TypedDict):
    free_bytes: int
    total_bytes: int


class GpuProcess(TypedDict):
    pid: int | None
    name: str
    memory_mib: int | None


class Gpu(TypedDict):
    index: int | None
    uuid: str
    name: str
    memory_total_mib: int | None
    memory_used_mib: int | None
    processes: List[GpuProcess]


class Interpreter(TypedDict):
    """A Python on the machine; `trainer`: it has all packages of the trainer."""

    path: str
    version: str | None
    torch: str | None
    trainer: bool
    kind: str


class Environment(TypedDict):
    """What the install job chose."""

    python: str
    kind: str
    torch: str
    cuda: str | None
    gpus: List[str]
    boot_id: str
    driver: str | None


class Facts(TypedDict):
    """Answer to `facts`. `locks` are for people: other programs may have written those files."""

    root: str
    hostname: str
    user: str
    home: str
    arch: str
    system: System
    boot_id: str
    uptime_s: float
    time_s: float
    python: PythonProgram
    cpus: int
    memory: Memory
    disk: Disk
    writable: bool
    gpus: List[Gpu]
    driver: str | None
    interpreters: List[Interpreter]
    envs: Dict[str, Environment]
    tools: Dict[str, bool]
    systemd: bool
    sleep_enabled: bool | None
    runs: List[str]
    locks: List[Dict[str, object]]
