"""A checkpoint that rank 0 read, on every node: over the process group, because the nodes may share no disk.

The files travel as they are and are verified by the sha256 of their manifest, so whatever loads a checkpoint loads it
from a local folder, on one node as on many. It must not know what is in the files.

Example::

    folder = on_every_node(world, folder, run_folder)     # on one node, or a shared disk: the same folder
    drop_received(world, run_folder)                      # when all have loaded it
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from trainer.checkpoints.manifest import CheckpointError, read_manifest, verify
from trainer.run_files import MANIFEST_FILE, TEMPORARY_PREFIX

RECEIVED = TEMPORARY_PREFIX + "received"
CHUNK_BYTES = 16 * 1024**2


class Place(Protocol):
    """Of a World: where this rank is among the nodes."""

    @property
    def size(self) -> int: ...
    @property
    def local_rank(self) -> int: ...
    @property
    def nodes(self) -> int: ...
    @property
    def leads(self) -> bool: ...


def on_every_node(world: Place, folder: Path | None, run_folder: Path) -> Path | None:
    """The checkpoint that rank 0 has at `folder`, as a folder of this rank's node. All ranks call it.

    Raises CheckpointError on all ranks where one node cannot store it.
    """
    if folder is None or world.nodes == 1:
        return folder
    if world.local_rank == 0:
        shutil.rmtree(run_folder / RECEIVED, ignore_errors=True)
    digest = [_digest(folder) if world.leads else ""]
    dist.broadcast_object_list(digest, src=0, device=torch.device("cpu"))
    here = world.leads or has_it(folder, digest[0])
    if all(said_by_all(world, here)):
        return folder
    received = run_folder / RECEIVED / folder.name
    trouble = "" if world.local_rank else _exchange(world, folder, None if here else received)
    troubles = {rank: said for rank, said in enumerate(said_by_all(world, trouble)) if said}
    if troubles:
        words = (f"rank {rank} cannot take the checkpoint: {said}" for rank, said in troubles.items())
        raise CheckpointError("; ".join(words))
    return folder if here else received


def drop_received(world: Place, run_folder: Path) -> None:
    """Frees the disk once every rank has loaded what was received; what is mapped stays readable."""
    if world.nodes > 1:
        dist.barrier()
        if world.local_rank == 0:
            shutil.rmtree(run_folder / RECEIVED, ignore_errors=True)


def has_it(folder: Path, digest: str) -> bool:
    """Whether this node has the checkpoint whose manifest has this sha256: a shared disk, or an earlier copy."""
    try:
        return _digest(folder) == digest and bool(verify(folder))
    except (OSError, CheckpointError):
        return False


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


def _exchange(world: Place, source: Path, target: Path | None) -> str:
    """Sends from rank 0 to the first rank of every other node, which writes where it has a target. Returns what went
    wrong here; it still takes part to the end, because the others would wait."""
    group = dist.new_group(_first_of_nodes(world), backend="gloo", use_local_synchronization=True)
    sizes: dict[str, int] = {}
    if world.leads:
        listed = {name: entry["size_bytes"] for name, entry in read_manifest(source).items()}
        sizes = {**listed, MANIFEST_FILE: (source / MANIFEST_FILE).stat().st_size}
    box = [sizes]
    dist.broadcast_object_list(box, src=0, group=group, device=torch.device("cpu"))
    trouble = ""
    for name, size in box[0].items():
        trouble = _exchange_file(group, source / name if world.leads else None, target and target / name, size, trouble)
    if target is None or trouble:
        return trouble
    try:
        verify(target)
    except CheckpointError as error:
        return str(error)
    return ""


def _exchange_file(
    group: dist.ProcessGroup | None, source: Path | None, target: Path | None, size: int, trouble: str
) -> str:
    chunk = torch.empty(min(CHUNK_BYTES, max(1, size)), dtype=torch.uint8)
    view = chunk.numpy().data
    for start in range(0, size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - start)
        try:
            if source is not None:
                with source.open("rb") as file:
                    file.seek(start)
                    file.readinto(view[:length])
        except OSError as error:
            trouble = trouble or f"{source}: {error.strerror or error}"
        dist.broadcast(chunk[:length], src=0, group=group)
        try:
            if target is not None and not trouble:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("ab") as file:
                    file.write(view[:length])
        except OSError as error:
            trouble = f"{target}: {error.strerror or error}"
    return trouble


def _first_of_nodes(world: Place) -> list[int]:
    return list(range(0, world.size, world.size // world.nodes))


def said_by_all(world: Place, own: Any) -> list[Any]:
    """What every rank says, in their order, on all of them."""
    said: list[Any] = [None] * world.size
    dist.all_gather_object(said, own)
    return said
