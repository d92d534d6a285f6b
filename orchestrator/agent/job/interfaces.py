"""The network interfaces that are up and their IPv4 addresses. Asks the kernel; runs no program.

Example: `carrier("10.0.0.2")`        # 'eth1'
"""

from __future__ import annotations

import fcntl
import socket
import struct

SIOCGIFADDR, SIOCGIFNETMASK = 0x8915, 0x891B


def addresses() -> dict[str, str]:
    """Interface -> its first IPv4 address and the length of its network's prefix, `10.0.0.2/24`, without the
    loopback's."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                address = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, request)[20:24]
                mask = fcntl.ioctl(asked.fileno(), SIOCGIFNETMASK, request)[20:24]
            except OSError:
                continue  # it has none
            found[name] = "%s/%d" % (socket.inet_ntoa(address), bin(int.from_bytes(mask, "big")).count("1"))
    return {name: address for name, address in found.items() if name != "lo"}


def carrier(address: str) -> str | None:
    """The interface that has this address; `lo` for one of the loopback's; None: no interface here has it."""
    if address.startswith("127."):
        return "lo"
    return next((name for name, own in addresses().items() if own.partition("/")[0] == address), None)
