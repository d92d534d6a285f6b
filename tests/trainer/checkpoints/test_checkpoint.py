"""Checkpoints: whole or absent at every instant, verified before use, and never the only good one deleted."""

import io
import json
import os
import pickle
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.files.small_runs import TINY, write_run
from trainer.checkpoints.checkpoint import (
    Snapshot,
    checkpoint_steps,
    find_newest,
    load_model,
    read_trainer_state,
    read_weights,
    write_checkpoint,
    write_manifest,
)
from trainer.checkpoints.manifest import CheckpointError, read_manifest, verify
from trainer.contract import RetentionConfig, RunConfig
from trainer.model.gpt import GPT
from trainer.run_files import (
    BEST,
    CHECKPOINTS,
    LATEST,
    MANIFEST_FILE,
    MODEL_FILE,
    SAFE_FILE,
    TRAINER_STATE_FILE,
    Retention,
)
from trainer.training.saver import DAMAGED_PREFIX, Saver, clean_up

Told = list[tuple[str, int, dict[str, Any]]]


def snapshot(step: int, val_loss: float | None = None, size: int = 100) -> Snapshot:
    weights = {"weight": torch.full((size,), float(step))}
    trainer = {"optimizer": {"weight": {"exp_avg": torch.zeros(2 * size)}}, "scaler": {}}
    return Snapshot(step, weights, trainer, {"step": step, "val_loss": val_loss})


def saver_of(folder: Path, told: Told | None = None, **retention: Any) -> Saver:
    folder.mkdir(exist_ok=True)
    lines = [] if told is None else told
    config = RunConfig(retention=RetentionConfig(**retention))
    return Saver(folder, config, lambda name, step, **fields: lines.append((name, step, fields)))


def stored(folder: Path) -> list[int]:
    return list(checkpoint_steps(folder / CHECKPOINTS))


# What touches the disk: the process is killed before the n-th such call, for every n.
DISK_CALLS = {
    "serialize_file",
    "open",
    "write",
    "fsync",
    "rename",
    "replace",
    "symlink",
    "unlink",
    "rmdir",
    "mkdir",
    "remove",
}


def save_and_die_before(call: int, folder: Path) -> bool:
    """In a child process: saves step 30, killed before that disk call. Returns False when the save was over before."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(frame: object, event: str, function: Any) -> None:
            nonlocal seen
            if event == "c_call" and function.__name__ in DISK_CALLS:
                seen += 1
                if seen > call:
                    os.kill(os.getpid(), signal.SIGKILL)

        saver = saver_of(folder, keep_last=2)
        sys.setprofile(count)
        saver.write(snapshot(30, val_loss=1.0))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_killed_before_every_single_disk_call_a_whole_checkpoint_is_found(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    saver = saver_of(begun, keep_last=2)
    saver.write(snapshot(10, val_loss=3.0))
    saver.write(snapshot(20, val_loss=2.0))
    found_steps = []
    folder = tmp_path / "run"
    call = 0
    killed = True
    while killed:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(begun, folder, symlinks=True)
        killed = save_and_die_before(call, folder)
        found = find_newest(folder)
        assert found.folder is not None, f"killed before call {call}: nothing to resume from"
        assert float(read_weights(found.folder)["weight"][0]) == found.step
        for link in (LATEST, BEST):
            verify((folder / CHECKPOINTS / link).resolve(strict=True))
        clean_up(folder, found.rejected)
        assert not list((folder / CHECKPOINTS).glob(".tmp-*"))
        found_steps.append(found.step)
        call += 1
    assert call > 40
    assert found_steps == sorted(found_steps)
    assert set(found_steps) == {20, 30}
    assert not found.rejected


@pytest.mark.parametrize("name", [MODEL_FILE, TRAINER_STATE_FILE, "meta.json", MANIFEST_FILE])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_newest_is_passed_over_named_and_set_aside(tmp_path: Path, name: str, damage: str) -> None:
    saver = saver_of(tmp_path / "run")
    saver.write(snapshot(10))
    saver.write(snapshot(20))
    path = tmp_path / "run" / CHECKPOINTS / "step-000020" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes({"flip": content, "cut": content[:-7], "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    found = find_newest(tmp_path / "run")
    assert found.step == 10
    assert list(found.rejected) == ["step-000020"]
    assert name in found.rejected["step-000020"]
    clean_up(tmp_path / "run", found.rejected)
    assert stored(tmp_path / "run") == [10]
    assert (tmp_path / "run" / CHECKPOINTS / (DAMAGED_PREFIX + "step-000020")).is_dir()
    saver_of(tmp_path / "run").write(snapshot(20))
    assert find_newest(tmp_path / "run").step == 20


def test_a_step_that_is_there_already_is_replaced_whole(tmp_path: Path) -> None:
    root = tmp_path / CHECKPOINTS
    write_checkpoint(root, snapshot(10, size=50))
    write_checkpoint(root, snapshot(10, size=60))
    assert read_weights(root / "step-000010")["weight"].shape == (60,)
    assert [path.name for path in root.iterdir()] == ["step-000010"]


def test_best_is_by_validation_loss_and_alone_keeps_weights_only(tmp_path: Path) -> None:
    told: Told = []
    saver = saver_of(tmp_path / "run", told, keep_last=1)
    for step, val_loss in ((10, 3.0), (20, 2.0), (30, 2.5), (40, None), (50, float("nan"))):
        saver.write(snapshot(step, val_loss))
    root = tmp_path / "run" / CHECKPOINTS
    assert stored(tmp_path / "run") == [20, 50]
    assert os.readlink(root / BEST) == "step-000020"
    assert os.readlink(root / LATEST) == "step-000050"
    assert sorted(verify(root / BEST)) == ["meta.json", MODEL_FILE]
    assert not (root / BEST / TRAINER_STATE_FILE).exists()
    assert [fields["best"] for name, _, fields in told if name == "checkpointed"] == [True, True, False, False, False]
    # Weights alone cannot be resumed from; a saver that starts anew still knows the best.
    shutil.rmtree(root / "step-000050")
    assert find_newest(tmp_path / "run").folder is None
    again = saver_of(tmp_path / "run", keep_last=1)
    again.write(snapshot(60, 2.2))
    assert os.readlink(root / BEST) == "step-000020"


def test_a_best_that_is_damaged_meanwhile_costs_no_later_save(tmp_path: Path) -> None:
    told: Told = []
    saver = saver_of(tmp_path / "run", told, keep_last=1)
    saver.write(snapshot(10, 1.0))
    (tmp_path / "run" / CHECKPOINTS / "step-000010" / MANIFEST_FILE).write_text("{")
    saver.save(snapshot(20, 2.0))
    saver.close()
    assert find_newest(tmp_path / "run").step == 20
    assert told[-1][0] == "warning"
    assert "not deleted: step-000010: no readable MANIFEST.json" in told[-1][2]["reason"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    val_losses=st.lists(st.none() | st.floats(1, 9), min_size=1, max_size=7),
    keep_last=st.integers(0, 3),
    keep_every=st.sampled_from([0, 20, 30]),
)
def test_retention_keeps_exactly_what_the_contract_says_and_the_newest(
    tmp_path_factory: pytest.TempPathFactory, val_losses: list[float | None], keep_last: int, keep_every: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    saver = saver_of(folder, keep_last=keep_last, keep_every=keep_every)
    retention = Retention(keep_last, keep_every)
    present: set[int] = set()
    best: tuple[float, int] | None = None
    for number, val_loss in enumerate(val_losses, start=1):
        step = 10 * number
        saver.write(snapshot(step, val_loss))
        if val_loss is not None and (best is None or val_loss < best[0]):
            best = (val_loss, step)
        present = {*retention.kept({*present, step}, best and best[1]), step}
        assert set(stored(folder)) == present
        for path in checkpoint_steps(folder / CHECKPOINTS).values():
            verify(path)
        assert find_newest(folder).step == step


def test_require_safe_deletes_only_what_is_marked(tmp_path: Path) -> None:
    saver = saver_of(tmp_path / "run", keep_last=1, require_safe=True)
    for step in (10, 20, 30):
        saver.write(snapshot(step))
    assert stored(tmp_path / "run") == [10, 20, 30]
    (tmp_path / "run" / CHECKPOINTS / "step-000020" / SAFE_FILE).touch()
    saver.write(snapshot(40))
    assert stored(tmp_path / "run") == [10, 30, 40]


def test_a_disk_too_small_drops_unsafe_ones_but_never_best_or_the_newest_two(small_disk: Path) -> None:
    told: Told = []
    saver = saver_of(small_disk / "run", told, keep_last=1, require_safe=True)
    for step in range(10, 90, 10):  # 188 kB each, best alone 60 kB: five and best fit into 1 MiB
        saver.write(snapshot(step, val_loss=1.0 if step == 20 else 2.0, size=14_000))
    assert stored(small_disk / "run") == [20, 40, 50, 60, 70, 80]
    dropped = [fields["reason"] for name, _, fields in told if name == "warning"]
    assert ["step-000010" in dropped[0], "step-000030" in dropped[1], len(dropped)] == [True, True, 2]
    saver.write(snapshot(90, size=100_000))
    assert stored(small_disk / "run") == [20, 70, 80]
    assert "not written: No space left" in told[-1][2]["reason"]


def test_a_full_disk_leaves_the_old_ones_whole_and_warns_and_the_next_save_works(small_disk: Path) -> None:
    told: Told = []
    saver = saver_of(small_disk / "run", told)
    saver.write(snapshot(10))
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 8192))
    saver.save(snapshot(20, size=20_000))
    assert saver.pending is not None
    saver.pending.result()
    name, step, fields = told[-1]
    assert (name, step) == ("warning", 20)
    assert "No space left" in fields["reason"]
    assert find_newest(small_disk / "run").step == 10
    assert not list((small_disk / "run" / CHECKPOINTS).glob(".tmp-*"))
    ballast.unlink()
    saver.save(snapshot(30, size=20_000))
    saver.close()
    assert find_newest(small_disk / "run").step == 30


class Foreign:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/foreign-pickle-was-run",)


def test_torchs_advice_to_load_a_pickle_unsafely_is_never_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "step-000001"
    folder.mkdir()
    saved = io.BytesIO()
    torch.save({"optimizer": Foreign()}, saved)
    for content in (saved.getvalue(), saved.getvalue()[:-100], pickle.dumps(Foreign()), b"\x80\x04", b"no pickle"):
        (folder / TRAINER_STATE_FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match="is refused: ") as caught:
            read_trainer_state(folder)
        told = "".join(traceback.format_exception(caught.value)).lower()
        assert not any(word in told for word in ("weights_only", "weights only", "trusted", "torch.load"))


def test_a_foreign_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, snapshot(10))
    marker = Path("/tmp/foreign-pickle-was-run")
    marker.unlink(missing_ok=True)
    torch.save({"optimizer": Foreign()}, folder / TRAINER_STATE_FILE)
    with pytest.raises(CheckpointError, match=r"step-000010: trainer_state\.pt is refused"):
        read_trainer_state(folder)
    (folder / TRAINER_STATE_FILE).write_bytes(pickle.dumps(Foreign()))
    with pytest.raises(CheckpointError, match="is refused"):
        read_trainer_state(folder)
    assert not marker.exists()


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, snapshot(10))
    files = read_manifest(folder)
    write_manifest(folder, {**files, "../../etc/passwd": files[MODEL_FILE]})
    with pytest.raises(CheckpointError, match="does not list plain files"):
        verify(folder)


def test_strangers_in_the_folder_are_no_checkpoints(tmp_path: Path) -> None:
    root = tmp_path / CHECKPOINTS
    write_checkpoint(root, snapshot(10))
    for name in ("step-abc", "step-", ".tmp-step-000020", "epoch-000030", "damaged-step-000040"):
        (root / name).mkdir()
    (root / LATEST).symlink_to("step-000010")
    (root / "step-000050").write_text("a file")
    assert list(checkpoint_steps(root)) == [10]
    assert checkpoint_steps(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back_as_it_was_without_padding_and_a_tied_head_once(tmp_path: Path, tied: bool) -> None:
    config = type(TINY)(**{**TINY.__dict__, "tie_embeddings": tied})
    folder = write_run(tmp_path / "run", config)
    torch.manual_seed(3)
    original = GPT(config).eval()
    model, meta = load_model(tmp_path / "run", torch.device("cpu"))
    tensors = read_weights(folder)
    assert tensors["token_embedding.weight"].shape == (257, 32)
    assert ("head.weight" in tensors) is not tied
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids), original(ids))
    assert not model.training
    assert meta["step"] == 7


def test_best_comes_before_latest(tmp_path: Path) -> None:
    write_run(tmp_path / "run", step=7)
    root = tmp_path / "run" / CHECKPOINTS
    shutil.copytree(root / "step-000007", root / "step-000009")
    meta = json.loads((root / "step-000009" / "meta.json").read_text())
    (root / "step-000009" / "meta.json").write_text(json.dumps({**meta, "step": 9}))
    (root / BEST).symlink_to("step-000009")
    with pytest.raises(CheckpointError, match=r"meta\.json"):  # best was chosen, and its change is noticed
        load_model(tmp_path / "run", torch.device("cpu"))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "does not describe a model"),
        ({"model": {"n_layers": 3}}, "does not describe a model"),
        ({"model": {"vocab_size": 257}}, "tensor .* has shape|is missing|not part of this model"),
    ],
)
def test_weights_of_something_else_are_refused(tmp_path: Path, meta: dict[str, Any], message: str) -> None:
    state = snapshot(10)
    shape = {**TINY.__dict__, **meta["model"]} if meta.get("model") == {"vocab_size": 257} else meta.get("model")
    folder = write_checkpoint(tmp_path, Snapshot(10, state.model, {}, {"step": 10, "model": shape}))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, torch.device("cpu"))


def test_a_folder_that_is_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a checkpoint .* nor a run folder"):
        load_model(tmp_path, torch.device("cpu"))
