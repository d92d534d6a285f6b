"""Fires the faults that wait for a run on a machine to reach a step (sessions cut, reboot, preemption), and ends
machines that powered themselves off and were launched to terminate then.

Reads the trainer's metrics.jsonl in the run folders and changes nothing there.

Example: `fire_due_faults(cloud)`, a few times per second
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.rehearsal.books.books import Instance
from orchestrator.rehearsal.cloud import Cloud
from orchestrator.rehearsal.machines import machine
from orchestrator.rehearsal.machines.disk import Disk

ON_POWER_OFF = ("on-power-off", "terminate")
"""The tag of a machine that terminates when it powers off; any other stays active and billed."""


def fire_due_faults(cloud: Cloud) -> None:
    """Fires due faults on every active machine that is not foreign."""
    armed = [name for name in ACTS if cloud.faults.peek(name)]
    for instance in cloud.instances().values():
        if instance.status == "active" and not instance.foreign:
            if ON_POWER_OFF in instance.tags and machine.is_powered_off(cloud.disk(instance)):
                cloud.terminate(instance)
            for name in armed:
                _fire_when_due(cloud, name, instance)


def _fire_when_due(cloud: Cloud, name: str, instance: Instance) -> None:
    disk = cloud.disk(instance)
    armed = cloud.faults.peek(name)
    if armed is None or newest_step(disk) < float(armed.argument):
        return
    if name == "ssh-drop" and not machine.sessions(disk):
        return  # no session is open: cutting none would prove nothing
    cloud.faults.take(name, armed.argument, on=instance.id)
    ACTS[name](cloud, instance)


ACTS: dict[str, Callable[[Cloud, Instance], None]] = {
    "ssh-drop": lambda cloud, instance: machine.drop_sessions(cloud.disk(instance)),
    "reboot": lambda cloud, instance: machine.reboot(cloud.disk(instance)),
    "reboot-elsewhere": Cloud.reboot_elsewhere,
    "notice": Cloud.give_notice,
    "rebalance": Cloud.recommend_rebalance,
    "preempt": Cloud.preempt,
    "frozen": lambda cloud, instance: machine.freeze(cloud.disk(instance)),
    "ssh-gone": lambda cloud, instance: machine.kill(cloud.disk(instance)),
}
"""What each waiting fault does to a machine."""


def newest_step(disk: Disk) -> float:
    """The furthest step that a run on this machine has logged; -1 before the first."""
    return max((step for file in machine.metric_files(disk) for step in _steps(file)), default=-1.0)


def _steps(file: Path) -> Iterator[float]:
    """The step of the last whole line. The machine may vanish, or be writing the line, meanwhile."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        try:
            yield float(json.loads(line)["step"])
            return
        except (ValueError, KeyError, TypeError):
            continue
