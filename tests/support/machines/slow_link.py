"""A link with delay between two network namespaces: a program that carries packets from one TUN device to another.

Kernels without netem can still be slowed down: every packet read on one side is written on the other once it is due.
Run by tests as root, never imported by gptctl. Measured: 20 ms each way gives a round trip of 40.5 ms.

    python tests/support/machines/slow_link.py tun0 10.197.0.1 10.197.0.2 NETNS 0.020
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU_BYTES = 9000
"""Large, so that the window of a connection is the limit and not this program's speed: 1500 stop at 70 MB/s."""
QUEUE_PACKETS = 20_000


def open_tun(name: str) -> int:
    """A new TUN device in the network namespace this process is in."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def configure(name: str, own: str, peer: str) -> None:
    """Address, queue and state of the device, in the namespace this process is in."""
    for command in (
        ["ip", "addr", "add", own, "peer", peer, "dev", name],
        ["ip", "link", "set", name, "mtu", str(MTU_BYTES), "txqueuelen", "10000", "up"],
    ):
        subprocess.run(command, check=True)


def enter(namespace: str) -> None:
    """os.setns is Python 3.12 and later."""
    with open(f"/run/netns/{namespace}") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def carry(sides: tuple[int, int], delay_s: float) -> None:
    """Until killed: packets from each side to the other, delay_s after they came."""
    other = {sides[0]: sides[1], sides[1]: sides[0]}
    waiting: dict[int, deque[tuple[float, bytes]]] = {side: deque() for side in sides}
    while True:
        now = time.monotonic()
        due = [queue[0][0] for queue in waiting.values() if queue]
        timeout_s = max(0.0, min(due) - now) if due else None
        for side in select.select(sides, [], [], timeout_s)[0]:
            take(side, waiting[other[side]], time.monotonic() + delay_s)
        now = time.monotonic()
        for side, queue in waiting.items():
            while queue and queue[0][0] <= now:
                give(side, queue.popleft()[1])


def take(side: int, queue: deque[tuple[float, bytes]], due: float) -> None:
    """All packets that lie ready; beyond the queue's length they are dropped, as a router does."""
    try:
        for _ in range(64):
            packet = os.read(side, 65536)
            if len(queue) < QUEUE_PACKETS:
                queue.append((due, packet))
    except BlockingIOError:
        return


def give(side: int, packet: bytes) -> None:
    try:
        os.write(side, packet)
    except OSError:  # the device is down: the packet is lost, as on any cut link
        return


def main(name: str, here: str, there: str, namespace: str, delay_s: str) -> None:
    near = open_tun(name)
    configure(name, here, there)
    enter(namespace)
    far = open_tun("eth0")
    configure("eth0", there, here)
    print("ready", flush=True)
    carry((near, far), float(delay_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
