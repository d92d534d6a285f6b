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


class Folder(TypedDict):
    """What the system says to writing, locking and running a file in ROOT; each empty where that works."""

    write: str
    lock: str
    run: str


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
    mig: bool
    processes: List[GpuProcess]


class Interpreter(TypedDict):
    """A Python on the machine; `trainer`: it has all packages of the trainer."""

    path: str
    version: str | None
    torch: str | None
    trainer: bool
    kind: str


class _Environment(TypedDict):
    python: str
    kind: str
    torch: str
    cuda: str | None
    gpus: List[str]
    boot_id: str
    driver: str | None


class Environment(_Environment, total=False):
    """What the install job chose. `visible`: UUIDs of the cards that it was tried on, where not on all.
    `compile_fault`: why torch.compile cannot work in it; None where it does, or without a GPU."""

    visible: List[str]
    compile_fault: str | None


class _Facts(TypedDict):
    """Answer to `facts`. `gpu_trouble`: what nvidia-smi says where it fails, else empty. `locks` are for people: other
    programs may have written those files."""

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
    folder: Folder
    gpus: List[Gpu]
    driver: str | None
    gpu_trouble: str
    interpreters: List[Interpreter]
    envs: Dict[str, Environment]
    tools: Dict[str, bool]
    systemd: bool
    sleep_enabled: bool | None
    runs: List[str]
    locks: List[Dict[str, object]]


class Facts(_Facts, total=False):
    """With what agents since 0.2 add: `addresses`, interface -> `10.0.0.2/24`, without the loopback's; `after_reboot`:
    how a training goes on then (names.BootWay)."""

    addresses: Dict[str, str]
    after_reboot: str
