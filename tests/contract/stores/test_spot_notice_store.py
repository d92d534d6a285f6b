"""A spot notice with nobody there: the last checkpoint is in the store and read back, and then the machine powers
itself off, without waiting to be taken."""

from __future__ import annotations

from tests.contract.agent.test_spot_notice import Metadata, in_s, metadata
from tests.contract.guard.test_guard_self import machine, order
from tests.contract.stores.test_offload_urls import FILES, RUN, box, checkpoint, index, safe, server, start
from tests.support.clock.waiting import until
from tests.support.clouds.object_server import ObjectServer
from tests.support.machines.agent_box import Box
from tests.support.machines.self_machine import SelfMachine

__all__ = ["box", "machine", "metadata", "server"]


def test_the_last_checkpoint_is_stored_and_the_machine_ends(
    box: Box, machine: SelfMachine, metadata: Metadata, server: ObjectServer
) -> None:
    retention = {"keep_last": 2, "keep_every": 0, "require_safe": True}
    box.start(steps=100_000, retention=retention, spec_notice={"url": metadata.url}, spec_lease_s=600)
    start(box, server.urls(["step-000010"], FILES))
    checkpoint(box, 10)
    until(lambda: safe(box) == [10])
    assert box.call("arm", **order(lease_s=600))["guard"]["armed"]
    server.refuse[("PUT", "")] = (503, "SlowDown")  # so that it is stored after the notice, whatever comes first
    last = checkpoint(box, 50)
    metadata.documents["instance-action"] = in_s(120)
    until(lambda: box.call("status", run=RUN)["runs"][RUN]["notice"] is not None)
    assert safe(box) == [10] and machine.off == 0
    server.refuse.clear()
    until(lambda: machine.off > 0)
    assert box.wait()["outcome"] == index(server)["ended"]["outcome"] == "preempted"
    assert [each["step"] for each in index(server)["checkpoints"]] == [10, 50]
    assert server.objects["spare-01/model.safetensors"] == (last / "model.safetensors").read_bytes()
