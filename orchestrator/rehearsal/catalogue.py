"""What the rehearsal cloud sells, in the API's own shape. Prices are Lambda's of 2026-08 in US cents per hour.

Every description says "(simulated)".

Example: `TYPES["gpu_8x_a100"]["price_cents_per_hour"] == 1592`
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

REGIONS: dict[str, Json] = {
    name: {"name": name, "description": f"{place} (simulated)"}
    for name, place in (
        ("us-west-1", "California, USA"),
        ("us-east-1", "Virginia, USA"),
        ("europe-central-1", "Germany"),
    )
}


def _type(name: str, cents: int, gpus: int, card: str, specs: tuple[int, int, int]) -> Json:
    vcpus, memory_gib, storage_gib = specs
    return {
        "name": name,
        "description": f"{gpus}x {card} (simulated)",
        "gpu_description": f"{card} (simulated)",
        "price_cents_per_hour": cents,
        "specs": {"vcpus": vcpus, "memory_gib": memory_gib, "storage_gib": storage_gib, "gpus": gpus},
    }


TYPES: dict[str, Json] = {
    row["name"]: row
    for row in (
        _type("gpu_1x_a10", 129, 1, "A10 (24 GB PCIe)", (30, 200, 1400)),
        _type("gpu_1x_h100_sxm5", 429, 1, "H100 (80 GB SXM5)", (26, 225, 2816)),
        _type("gpu_8x_a100", 1592, 8, "A100 (40 GB SXM4)", (124, 1800, 6144)),
        _type("gpu_8x_a100_80gb_sxm4", 2232, 8, "A100 (80 GB SXM4)", (240, 1800, 20480)),
        _type("gpu_8x_h100_sxm5", 3192, 8, "H100 (80 GB SXM5)", (208, 1800, 22528)),
    )
}

IMAGES: list[Json] = [
    {
        "id": f"{number:032x}",
        "created_time": "2026-08-01T00:00:00Z",
        "updated_time": "2026-08-01T00:00:00Z",
        "name": "Lambda Stack 22.04 (simulated)",
        "description": "The computer this cloud runs on, with a clean home folder",
        "family": "lambda-stack-22-04",
        "version": "22.4.7",
        "architecture": "x86_64",
        "region": region,
    }
    for number, region in enumerate(REGIONS.values(), start=0xA1)
]


def _file_system(number: int, name: str, region: str) -> Json:
    return {
        "id": f"{number:032x}",
        "name": name,
        "mount_point": f"/lambda/nfs/{name}",
        "created": "2026-08-01T00:00:00Z",
        "created_by": {"id": f"{0xC0:032x}", "email": "colleague@example.com", "status": "active"},
        "is_in_use": False,
        "region": REGIONS[region],
        "bytes_used": 0,
    }


FILE_SYSTEMS: list[Json] = [
    _file_system(0xF5, "foreign-files", "us-west-1"),
    _file_system(0xF6, "datasets", "us-east-1"),
]
