"""Faults that wait for a run on a machine to reach a step: sessions cut, reboot, preemption.

It reads the trainer's metrics.jsonl in the run folders and changes nothing there.

Example: `look(cloud)`, a few times per second
"""

from __future__ import annotations

import json

from orchestrator.rehearsal import machines
from orchestrator.rehearsal.books import Instance
from orchestrator.rehearsal.cloud import Cloud
from orchestrator.rehearsal.disk import Disk

WAITING = ("ssh-drop", "reboot", "preempt")


def look(cloud: Cloud) -> None:
    """Fires what is due on every active machine of ours."""
    if not any(cloud.faults.peek(name) for name in WAITING):
        return
    for instance in cloud.instances().values():
        if instance.status == "active" and not instance.foreign:
            for name in WAITING:
                _fire_when_due(cloud, name, instance)


def _fire_when_due(cloud: Cloud, name: str, instance: Instance) -> None:
    disk = cloud.disk(instance)
    armed = cloud.faults.peek(name)
    if armed is None or newest_step(disk) < float(armed.argument):
        return
    if name == "ssh-drop" and not machines.sessions(disk):
        return  # nobody is listening: it would prove nothing
    cloud.faults.take(name, armed.argument, on=instance.id)
    if name == "ssh-drop":
        machines.drop_sessions(disk)
    elif name == "reboot":
        machines.reboot(disk)
    else:
        cloud.preempt(instance)


def newest_step(disk: Disk) -> float:
    """The furthest step that a run on this machine has logged; -1 before the first."""
    return max((_last_step(file.read_bytes()) for file in machines.metric_files(disk)), default=-1.0)


def _last_step(metrics: bytes) -> float:
    lines = [line for line in metrics.splitlines() if line.endswith(b"}")]  # the last one may be half written
    return float(json.loads(lines[-1])["step"]) if lines else -1.0
