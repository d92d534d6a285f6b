"""A checkpoint that all ranks write together: each writes its rows at their place in the two files of the contract.

torch.distributed.checkpoint plans who writes what, and tells every rank where one of them failed. The rows of a rank
are one range of bytes in each tensor, so that writing them there merges the parts: no rank holds more than its own, and
a reader cannot tell whether one rank or eight wrote. All ranks must see the folder. It must not touch a device.

Example::

    saver = Saver(run.folder, run.config, run.journal.event, parts_writer(run, model))    # on every rank
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.futures import Future
from torch.serialization import set_crc32_options, skip_data

from trainer.checkpoints.checkpoint import Snapshot, entry_of, publish
from trainer.contract import ContractError, RunConfig
from trainer.model.gpt import GPT
from trainer.run_files import CHECKPOINTS, MODEL_FILE, TEMPORARY_PREFIX, TRAINER_STATE_FILE, checkpoint_name
from trainer.training.ranks import World, from_leader, sum_over_ranks
from trainer.training.saver import Writer


class Place(NamedTuple):
    """Where a tensor is in its file, in bytes, and how many rows it has there."""

    file: str
    offset: int
    rows: int
    row_bytes: int


class Ranks(Protocol):
    """What it needs of a run (trainer.training.start.Run)."""

    @property
    def world(self) -> World: ...

    @property
    def config(self) -> RunConfig: ...


@dataclass(frozen=True)
class Parts:
    """The ranks and the whole shapes of what they have rows of: `cut` as in memory, `kept` as in files."""

    world: World
    group: dist.ProcessGroup
    """Of its own: a thread writes while the training uses the other."""
    mesh: DeviceMesh
    cut: Mapping[str, torch.Size]
    kept: Mapping[str, torch.Size]

    def write(self, root: Path, snapshot: Snapshot) -> Path:
        """Writes root/step-NNNNNN with all ranks, each with its rows in the snapshot; returns it on all of them.

        Raises OSError on every rank where one could not write, and leaves nothing behind.
        """
        files = FilesWriter(root, snapshot, self)
        rows = {f"{MODEL_FILE}/{name}": self._whole(name, tensor) for name, tensor in snapshot.model.items()}
        for name, entry in snapshot.trainer["optimizer"].items():
            for key, tensor in entry.items():
                if tensor.dim():
                    rows[f"{TRAINER_STATE_FILE}/{name}/{key}"] = self._whole(name, tensor)
        try:
            save(rows, storage_writer=files, process_group=self.group)
        except CheckpointException as error:
            if self.world.leads:
                shutil.rmtree(files.temporary, ignore_errors=True)
            rank, (cause, _) = next(iter(error.failures.items()))
            reason = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
            raise OSError(getattr(cause, "errno", None) or 0, f"rank {rank}: {reason}") from None
        return files.final

    def _whole(self, name: str, rows: Tensor) -> DTensor:
        shape = self.cut[name]
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(rows, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def parts_writer(run: Ranks, model: GPT) -> Writer:
    """For a Saver on every rank. All ranks must ask at the same time."""
    world, timeout = run.world, timedelta(seconds=run.config.train.process_group_timeout_s)
    cut = {name: parameter.shape for name, parameter in model.named_parameters()}
    kept = {name: model.unpad(name, torch.empty(shape, device="meta")).shape for name, shape in cut.items()}
    group = dist.new_group(backend="gloo", timeout=timeout)
    mesh = init_device_mesh("cpu", (world.size,))
    return Writer(Parts(world, group, mesh, cut, kept).write, world.size, world.leads)


class FilesWriter(StorageWriter):
    """The two files of one checkpoint: rank 0 makes them, all ranks fill them, rank 0 gives the folder its name."""

    def __init__(self, root: Path, snapshot: Snapshot, parts: Parts) -> None:
        self.snapshot, self.kept = snapshot, parts.kept
        self.final = root / checkpoint_name(snapshot.step)
        self.temporary = root / (TEMPORARY_PREFIX + self.final.name)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """One object writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: rank 0 makes the files once every rank is there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On rank 0: both files at their whole size, with all that is not cut."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        make_weights(self.temporary / MODEL_FILE, self.kept)
        make_trainer_state(self.temporary / TRAINER_STATE_FILE, self.snapshot, self.kept)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This rank's rows. Raises OSError."""
        places = {**weight_places(self.kept), **trainer_state_places(self.temporary / TRAINER_STATE_FILE)}
        opened = {file: os.open(self.temporary / file, os.O_WRONLY) for file in (MODEL_FILE, TRAINER_STATE_FILE)}
        try:
            results = [self._write(item, planner, places[item.index.fqn], opened) for item in plan.items]
            for descriptor in opened.values():
                os.fsync(descriptor)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def _write(self, item: WriteItem, planner: SavePlanner, place: Place, opened: Mapping[str, int]) -> WriteResult:
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)
        first = item.index.offset[0] if item.index.offset else 0
        rows = tensor[: max(0, place.rows - first)].contiguous()  # padded rows are not kept
        if rows.numel():
            write_at(opened[place.file], rows.numpy().data.cast("B"), place.offset + first * place.row_bytes)
        return WriteResult(index=item.index, size_in_bytes=rows.nbytes, storage_data=None)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, once all have written."""
        files = {file: entry_of(self.temporary / file) for file in (MODEL_FILE, TRAINER_STATE_FILE)}
        publish(self.temporary, self.final, files, self.snapshot.meta)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """It takes none."""
        return False


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of data. Raises OSError."""
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def make_weights(path: Path, kept: Mapping[str, torch.Size]) -> None:
    """A safetensors file of these fp32 tensors, as the library writes it, without their bytes."""
    header = weights_header(kept)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * sum(shape.numel() for shape in kept.values()))


def weights_header(kept: Mapping[str, torch.Size]) -> bytes:
    """By name, padded with spaces to eight bytes."""
    tensors, begin = {}, 0
    for name, shape in sorted(kept.items()):
        end = begin + 4 * shape.numel()
        tensors[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(tensors, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def weight_places(kept: Mapping[str, torch.Size]) -> dict[str, Place]:
    """Where each tensor's bytes are in the file of make_weights."""
    begin, places = 8 + len(weights_header(kept)), {}
    for name, shape in sorted(kept.items()):
        places[f"{MODEL_FILE}/{name}"] = _place(MODEL_FILE, begin, shape)
        begin += 4 * shape.numel()
    return places


def make_trainer_state(path: Path, snapshot: Snapshot, kept: Mapping[str, torch.Size]) -> None:
    """What torch.save would write of the whole state, without the bytes of what is cut; step counts are written."""
    state, scalars = snapshot.trainer["optimizer"], {}
    with FakeTensorMode():
        hollow: dict[str, dict[str, Tensor]] = {}
        for name, entry in state.items():
            hollow[name] = {key: torch.empty(kept[name] if value.dim() else ()) for key, value in entry.items()}
        set_crc32_options(False)
        with skip_data(materialize_fake_tensors=True):
            torch.save({"optimizer": hollow, "scaler": snapshot.trainer["scaler"]}, path)
    scalars = {(name, key): v for name, entry in state.items() for key, v in entry.items() if not v.dim()}
    places = trainer_state_places(path)
    with path.open("r+b") as file:
        for (name, key), value in scalars.items():
            place = places[f"{TRAINER_STATE_FILE}/{name}/{key}"]
            write_at(file.fileno(), memoryview(value.numpy().tobytes()), place.offset)


def trainer_state_places(path: Path) -> dict[str, Place]:
    """Where torch put each tensor's bytes. Reads no tensor."""
    with FakeTensorMode():
        state = torch.load(path, weights_only=True)
    return {
        f"{TRAINER_STATE_FILE}/{name}/{key}": _place(
            TRAINER_STATE_FILE, int(tensor.untyped_storage()._checkpoint_offset), tensor.shape
        )
        for name, entry in state["optimizer"].items()
        for key, tensor in entry.items()
    }


def _place(file: str, offset: int, shape: Sequence[int]) -> Place:
    rows = shape[0] if len(shape) else 1
    numbers = torch.Size(shape).numel()
    return Place(file, offset, rows, 4 * numbers // rows if rows else 0)


def check_shared_folder(run_folder: Path, world: World) -> None:
    """Raises ContractError on every rank where one does not see what rank 0 writes."""
    root = run_folder / CHECKPOINTS
    root.mkdir(exist_ok=True)
    mark = from_leader(world, f"{TEMPORARY_PREFIX}seen-{os.getpid()}")
    if world.leads:
        (root / mark).touch()
    sum_over_ranks(world, [0.0])
    (unseen,) = sum_over_ranks(world, [float(not (root / mark).exists())])
    if world.leads:
        (root / mark).unlink()
    if unseen:
        raise ContractError(
            f"train.parallel: fsdp writes checkpoints by all ranks together, and {unseen:.0f} of {world.size} do not "
            f"see {root} of rank 0: put the run folder on a disk that all machines share, or set ddp"
        )
