"""A checkpoint on every node although only rank 0's node has it, and rank 0 where the head is."""

from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import Store

from tests.support.machines.forked_ranks import in_ranks
from trainer.checkpoints import broadcast
from trainer.checkpoints.checkpoint import Snapshot, write_checkpoint
from trainer.checkpoints.manifest import CheckpointError, verify
from trainer.run_files import LEADS, MODEL_FILE
from trainer.training.ranks import Mark, World, leading_rank_first


def checkpoint(root: Path, *, value: float = 1.0) -> Path:
    return write_checkpoint(root, Snapshot(5, {"weight": torch.full((4000,), value)}, {}, {"step": 5}))


def nodes_of_two(world: World, root: Path) -> tuple[World, Path]:
    """The world as two nodes of two ranks, and the run folder on this rank's node."""
    node = world.rank // 2
    return World(world.rank, world.size, world.rank % 2, world.device, nodes=2), root / f"node-{node}" / "run"


@pytest.mark.parametrize("there", ["nothing", "another of the same name", "the same"])
def test_every_node_loads_what_rank_0_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    monkeypatch.setattr(broadcast, "CHUNK_BYTES", 5000)
    sent = checkpoint(tmp_path / "node-0" / "run" / "checkpoints")
    if there != "nothing":
        checkpoint(tmp_path / "node-1" / "run" / "checkpoints", value=1.0 if there == "the same" else 2.0)
    (tmp_path / "node-1" / "run").mkdir(parents=True, exist_ok=True)

    def work(world: World) -> tuple[str, dict[str, str], bool]:
        place, run = nodes_of_two(world, tmp_path)
        folder = broadcast.on_every_node(place, run / "checkpoints" / sent.name, run)
        assert folder is not None
        files = {name: entry["sha256"] for name, entry in verify(folder).items()}
        broadcast.drop_received(place, run)
        dist.barrier()
        return str(folder.relative_to(run)), files, (run / broadcast.RECEIVED).exists()

    found = in_ranks(4, tmp_path, work)
    assert [files for _, files, _ in found] == [{k: v["sha256"] for k, v in verify(sent).items()}] * 4
    assert not any(left for _, _, left in found)
    here = f"checkpoints/{sent.name}"
    elsewhere = here if there == "the same" else f"{broadcast.RECEIVED}/{sent.name}"
    assert [place for place, _, _ in found] == [here, here, elsewhere, elsewhere]


def test_a_node_that_cannot_store_it_is_named_on_every_rank(tmp_path: Path) -> None:
    sent = checkpoint(tmp_path / "node-0" / "run" / "checkpoints")
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1" / "run").write_text("a file where the folder has to be")

    def work(world: World) -> str:
        place, run = nodes_of_two(world, tmp_path)
        with pytest.raises(CheckpointError) as caught:
            broadcast.on_every_node(place, run / "checkpoints" / sent.name, run)
        return str(caught.value)

    said = in_ranks(4, tmp_path, work)
    assert len(set(said)) == 1
    assert said[0].startswith("rank 2 cannot take the checkpoint")


def test_on_one_node_the_folder_is_the_folder(tmp_path: Path) -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    assert broadcast.on_every_node(world, tmp_path / MODEL_FILE, tmp_path) == tmp_path / MODEL_FILE
    assert broadcast.on_every_node(world, None, tmp_path) is None
    broadcast.drop_received(world, tmp_path)


def test_rank_0_is_on_the_node_that_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert leading_rank_first(3, 4, 1, HashStore()) == 3  # without a mark as torchrun has it
    store, turned = HashStore(), {}
    for rank, leads in ((2, "1"), (3, "1"), (0, "0"), (1, "0")):
        monkeypatch.setenv(LEADS, leads)
        turned[rank] = leading_rank_first(rank, 4, rank % 2, store)
    assert turned == {2: 0, 3: 1, 0: 2, 1: 3}


def test_the_first_text_of_a_mark_stays() -> None:
    store = HashStore()
    for mark in (Mark("trouble", store), Mark("alone")):
        assert mark.text() == ""
        mark.put("first")
        mark.put("second")
        assert mark.text() == "first"
    assert Mark("trouble", store).text() == "first"


def test_a_store_that_is_gone_is_asked_once() -> None:
    asked: list[object] = []

    class Gone:
        def check(self, names: list[str]) -> bool:
            asked.append(names)
            raise RuntimeError("Broken pipe")

    mark = Mark("trouble", cast(Store, Gone()))
    assert (mark.text(), mark.text()) == ("", "")
    assert len(asked) == 1
