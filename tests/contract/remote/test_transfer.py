"""Bulk transfer over every shell: what arrives is what was sent, a second time sends nothing, names cannot escape."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.core.errors import CommandFailed, MachineUnfit, UserError, VerificationFailed
from orchestrator.core.ports import Shell
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.shell.ssh_shell import connect
from orchestrator.remote.transfer import far_program, parallel_ranges, transfer
from orchestrator.remote.transfer.transfer import Transfer, pull_file, pull_files, push_file, push_tree
from tests.support.machines.sshd import SMALL_DISK_BYTES, Sshd

NASTY_NAMES = [
    "it's",
    "a b",
    "$(touch canary)",
    "-rf",
    "semi;colon",
    "ü€",
    'quo"te',
    "star*",
    "new\nline",
    "back\\slash",
]


@dataclass(frozen=True)
class Entry:
    size_bytes: int
    sha256: str


@pytest.fixture(params=["local", "ssh"])
def any_shell(request: pytest.FixtureRequest, gptctl_home: Path, tmp_path: Path) -> Iterator[Shell]:
    """This machine, or an sshd reached as the CLI reaches it."""
    if request.param == "local":
        yield LocalShell()
        return
    with Sshd(tmp_path / "machines") as host:
        shell = connect(host.address(), known_hosts=gptctl_home / "known hosts")
        yield shell
        shell.close()


def a_file(path: Path, size_bytes: int) -> Path:
    """Different bytes everywhere, so that a range in the wrong place shows; cheap to make."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(0, size_bytes, len(block)):
            file.write((number.to_bytes(8, "big") + block[8:])[: size_bytes - number])
    return path


def entry(path: Path) -> Entry:
    data = path.read_bytes()
    return Entry(len(data), hashlib.sha256(data).hexdigest())


def tree(root: Path) -> dict[str, bytes]:
    """What a folder holds, hidden files of the transfer itself left out."""
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".gptctl-tree.json"}


def test_a_tree_arrives_whole_and_the_second_push_sends_nothing(any_shell: Shell, tmp_path: Path) -> None:
    source, far = tmp_path / "src", tmp_path / "far tree's"
    for number, name in enumerate([*NASTY_NAMES, "deep/er/file", "empty"]):
        a_file(source / name, 0 if name == "empty" else 1000 + number)
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    first = push_tree(any_shell, source, str(far), None, lambda _: None)
    second = push_tree(any_shell, source, str(far), None, lambda _: None)
    assert tree(far) == tree(source)
    assert stat.S_IMODE((far / "run.sh").stat().st_mode) == 0o755
    assert (first.files_sent, first.bytes_sent) == (len(NASTY_NAMES) + 3, sum(map(len, tree(source).values())))
    assert (second.files_sent, second.bytes_sent, second.way) == (0, 0, "none")


def test_only_differences_are_sent_and_removed_files_go(any_shell: Shell, tmp_path: Path) -> None:
    source, far = tmp_path / "src", tmp_path / "far"
    for name in ("one", "two", "three"):
        a_file(source / name, 5000)
    push_tree(any_shell, source, str(far), None, lambda _: None)
    (far / "theirs").write_text("made on the machine")
    (far / "two").write_bytes(b"damaged over there" + b"x" * (5000 - 18))
    (source / "three").unlink()
    report = push_tree(any_shell, source, str(far), None, lambda _: None)
    assert (report.files_sent, report.bytes_sent) == (1, 5000)
    assert tree(far) == tree(source) | {"theirs": b"made on the machine"}
    (source / "one").chmod(0o755)
    assert push_tree(any_shell, source, str(far), None, lambda _: None).files_sent == 1
    assert stat.S_IMODE((far / "one").stat().st_mode) == 0o755


def test_a_link_on_the_machine_is_replaced_and_not_written_through(any_shell: Shell, tmp_path: Path) -> None:
    source, far, victim = tmp_path / "src", tmp_path / "far", tmp_path / "victim"
    a_file(source / "file", 10)
    victim.write_bytes((source / "file").read_bytes())
    far.mkdir()
    (far / "file").symlink_to(victim)
    push_tree(any_shell, source, str(far), None, lambda _: None)
    assert not (far / "file").is_symlink()
    assert tree(far) == tree(source)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_a_tree_sends_only_names_inside_it(any_shell: Shell, tmp_path: Path, name: str) -> None:
    a_file(tmp_path / "src" / "file", 10)
    with pytest.raises(UserError, match="not a name inside"):
        push_tree(any_shell, tmp_path / "src", str(tmp_path / "far"), [name], lambda _: None)


def test_without_rsync_one_tar_stream_does_it_and_says_so(gptctl_home: Path, tmp_path: Path) -> None:
    source, far, told = tmp_path / "src", tmp_path / "far", list[Transfer]()
    for name in [*NASTY_NAMES, "deep/er/file"]:
        a_file(source / name, 1000)
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("python3", "sh", "cat"):
        (bare / tool).symlink_to(f"/usr/bin/{tool}")
    with Sshd(tmp_path / "machines", path=str(bare)) as host:
        shell = connect(host.address(), known_hosts=gptctl_home / "known_hosts")
        report = push_tree(shell, source, str(far), None, told.append)
        shell.close()
    assert report.way == "tar"
    assert tree(far) == tree(source)
    assert any("no usable rsync on the machine" in each.note for each in told)


def test_a_login_that_prints_gets_one_tar_stream_and_no_rsync(gptctl_home: Path, tmp_path: Path) -> None:
    source, far, told = tmp_path / "src", tmp_path / "far", list[Transfer]()
    a_file(source / "big", (8 << 20) + 1000)  # so much goes by rsync, which would read the greeting as its protocol
    with Sshd(tmp_path / "machines", login_shell="/bin/bash") as host:
        (host.home / ".bashrc").write_text("echo Welcome\ntrap 'echo bye' EXIT\n")
        shell = connect(host.address(), known_hosts=gptctl_home / "known_hosts")
        report = push_tree(shell, source, str(far), None, told.append)
        assert "Welcome" in shell.greeting()
        shell.close()
    assert (report.way, tree(far)) == ("tar", tree(source))
    assert any("whose login shell prints" in each.note for each in told)


@pytest.mark.parametrize(
    "size_bytes", [0, 1, parallel_ranges.CHUNK_BYTES + 1, parallel_ranges.PARALLEL_FROM_BYTES + 12345]
)
def test_a_file_goes_out_and_comes_back(any_shell: Shell, tmp_path: Path, size_bytes: int) -> None:
    source = a_file(tmp_path / "source", size_bytes)
    far, back, told = tmp_path / "f a'r" / "file", tmp_path / "back" / "file", list[Transfer]()
    wanted = entry(source)
    sent = push_file(any_shell, source, str(far), told.append)
    assert push_file(any_shell, source, str(far)).way == "none"
    came = pull_file(any_shell, str(far), back, size_bytes=size_bytes, sha256=wanted.sha256)
    assert pull_file(any_shell, str(far), back, size_bytes=size_bytes, sha256=wanted.sha256).way == "none"
    assert entry(far) == entry(back) == wanted
    assert sent.bytes_sent == came.bytes_sent == told[-1].bytes_done == told[-1].bytes_total == size_bytes
    assert [file.name for file in far.parent.iterdir()] == [file.name for file in back.parent.iterdir()] == ["file"]


def test_a_same_sized_other_file_is_sent_again(any_shell: Shell, tmp_path: Path) -> None:
    far = a_file(tmp_path / "far", 3 << 20)
    source = a_file(tmp_path / "source", 3 << 20)
    assert push_file(any_shell, source, str(far)).files_sent == 1
    assert entry(far) == entry(source)


def test_bytes_that_are_not_the_promised_ones_never_get_the_name(any_shell: Shell, tmp_path: Path) -> None:
    local = tmp_path / "here" / "model"
    for size_bytes in (1000, 3 << 20):
        far = a_file(tmp_path / "far", size_bytes)
        with pytest.raises(VerificationFailed, match="was promised"):
            pull_file(any_shell, str(far), local, size_bytes=size_bytes, sha256="0" * 64)
        assert list(local.parent.iterdir()) == []


def test_a_file_that_is_gone_or_shorter_is_an_error_and_leaves_nothing(any_shell: Shell, tmp_path: Path) -> None:
    local, far = tmp_path / "here" / "model", a_file(tmp_path / "far", 2 << 20)
    for remote in (str(far), str(tmp_path / "gone")):
        with pytest.raises((CommandFailed, VerificationFailed)):
            pull_file(any_shell, remote, local, size_bytes=3 << 20, sha256="0" * 64)
        assert not local.exists()


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "", ".", "..", "a/../../x", "a//b", "back\\slash", "a\nb", "\x1b[2J", "nul\0"]
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_asked(
    any_shell: Shell, tmp_path: Path, name: str
) -> None:
    (tmp_path / "far").mkdir()
    with pytest.raises(VerificationFailed, match="refused"):
        pull_files(any_shell, str(tmp_path / "far"), tmp_path / "here" / "deep", {name: Entry(1, "0" * 64)})
    assert sorted(path.name for path in tmp_path.iterdir() if path.name in {"x", "here"}) == []


def test_a_link_in_the_folder_here_is_not_written_through(any_shell: Shell, tmp_path: Path) -> None:
    far = a_file(tmp_path / "far" / "sub" / "file", 100)
    here, outside = tmp_path / "here", tmp_path / "outside"
    here.mkdir()
    outside.mkdir()
    (here / "sub").symlink_to(outside)
    with pytest.raises(VerificationFailed, match="is a link"):
        pull_files(any_shell, str(tmp_path / "far"), here, {"sub/file": entry(far)})
    assert list(outside.iterdir()) == []


def test_a_link_on_the_machine_is_not_followed_by_ranges(shell: Shell, tmp_path: Path) -> None:
    secret = a_file(tmp_path / "secret", 2 << 20)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "model").symlink_to(secret)
    with pytest.raises(CommandFailed):
        pull_files(shell, str(tmp_path / "far"), tmp_path / "here", {"model": entry(secret)})
    assert not (tmp_path / "here" / "model").exists()


def checkpoint(folder: Path) -> dict[str, Entry]:
    files = {"model.safetensors": 3 << 20, "trainer_state.pt": 70_000, "meta.json": 50}
    entries = {name: entry(a_file(folder / name, size)) for name, size in files.items()}
    listing = {name: {"size_bytes": each.size_bytes, "sha256": each.sha256} for name, each in entries.items()}
    (folder / "MANIFEST.json").write_text(json.dumps({"files": listing}))
    a_file(folder / "unlisted", 10)
    return entries


def test_a_checkpoint_folder_comes_as_its_manifest_lists_it(any_shell: Shell, tmp_path: Path) -> None:
    entries = checkpoint(tmp_path / "far")
    here = tmp_path / "here"
    first = pull_files(any_shell, str(tmp_path / "far"), here, entries, manifest="MANIFEST.json")
    (here / "meta.json").unlink()
    second = pull_files(any_shell, str(tmp_path / "far"), here, entries, manifest="MANIFEST.json")
    third = pull_files(any_shell, str(tmp_path / "far"), here, entries, manifest="MANIFEST.json")
    assert sorted(path.name for path in here.iterdir()) == sorted([*entries, "MANIFEST.json"])
    assert [each.files_sent for each in (first, second, third)] == [3, 1, 0]
    assert (here / "MANIFEST.json").read_bytes() == (tmp_path / "far" / "MANIFEST.json").read_bytes()


def test_a_manifest_that_lists_other_files_is_refused(any_shell: Shell, tmp_path: Path) -> None:
    entries = checkpoint(tmp_path / "far")
    (tmp_path / "far" / "MANIFEST.json").write_text('{"files": {"evil": {"size_bytes": 1, "sha256": "0"}}}')
    with pytest.raises(VerificationFailed, match="lists other files"):
        pull_files(any_shell, str(tmp_path / "far"), tmp_path / "here", entries, manifest="MANIFEST.json")
    assert not (tmp_path / "here" / "MANIFEST.json").exists()


def test_too_little_space_is_said_before_the_first_byte(any_shell: Shell, small_disk: Path, tmp_path: Path) -> None:
    source = a_file(tmp_path / "source" / "big", 4 * SMALL_DISK_BYTES)
    with pytest.raises((MachineUnfit, UserError), match=r"needs .* GB|needs .* MB"):
        push_file(any_shell, source, str(small_disk / "far"))
    with pytest.raises((MachineUnfit, UserError), match=r"needs .* MB"):
        push_tree(any_shell, source.parent, str(small_disk / "tree"), None, lambda _: None)
    with pytest.raises(UserError, match=r"GB free"):
        pull_file(any_shell, str(source), small_disk / "here", size_bytes=4 * SMALL_DISK_BYTES, sha256="0" * 64)
    assert [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_blocks > 16] == []


def test_a_machine_without_python_is_named(gptctl_home: Path, tmp_path: Path) -> None:
    source = a_file(tmp_path / "source", 100)
    empty = tmp_path / "bin"
    empty.mkdir()
    with Sshd(tmp_path / "machines", path=str(empty)) as host:
        shell = connect(host.address(), known_hosts=gptctl_home / "known_hosts")
        with pytest.raises(MachineUnfit, match="cannot run python3"):
            push_file(shell, source, str(tmp_path / "far"))
        shell.close()


def test_a_missing_source_is_the_users_error(any_shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        push_file(any_shell, tmp_path / "nothing", str(tmp_path / "far"))
    with pytest.raises(UserError, match="not a folder"):
        push_tree(any_shell, tmp_path / "nothing", str(tmp_path / "far"), None, lambda _: None)


def test_secrets_of_a_project_never_arrive(any_shell: Shell, tmp_path: Path) -> None:
    source, far = tmp_path / "src", tmp_path / "far"
    for name in (".env", ".env.local", "deploy/prod.pem", "id_rsa", "x/server.key", "train.py", "ignored.bin"):
        a_file(source / name, 20)
    (source / ".gitignore").write_text("ignored.bin\n")
    subprocess.run(["git", "init", "-q", str(source)], check=True)
    push_tree(any_shell, source, str(far), None, lambda _: None)
    assert sorted(tree(far)) == [".gitignore", "train.py"]


def test_a_part_with_other_bytes_is_noticed_thrown_away_and_sent_afresh(shell: Shell, tmp_path: Path) -> None:
    source, far = a_file(tmp_path / "source", parallel_ranges.PARALLEL_FROM_BYTES + 999), tmp_path / "far" / "file"
    plan = parallel_ranges.split(source.stat().st_size)
    far.parent.mkdir()
    stamp = transfer.identity(source)[2]
    part = Path(far_program.part_name(str(far), stamp))
    part.write_bytes(b"\0" * source.stat().st_size)
    Path(f"{part}.ranges").write_bytes(b"".join((each.size_bytes // 2).to_bytes(8, "little") for each in plan))
    with pytest.raises(VerificationFailed, match="arrived"):
        push_file(shell, source, str(far))
    assert list(far.parent.iterdir()) == []
    assert push_file(shell, source, str(far)).bytes_sent == source.stat().st_size
    assert entry(far) == entry(source)


HOSTILE = """#!/bin/sh
case "$*" in *' send '*) exec cat /dev/zero;; esac
exec /usr/bin/python3 "$@"
"""


def test_a_machine_that_sends_other_or_endless_bytes_gets_nothing_written(gptctl_home: Path, tmp_path: Path) -> None:
    """What counts are the bytes that arrived: digest and size are checked here, whatever the machine says it sent."""
    wicked, real = tmp_path / "wicked", a_file(tmp_path / "real", 2 << 20)
    wicked.mkdir()
    (wicked / "python3").write_text(HOSTILE)
    (wicked / "head").write_text("#!/bin/sh\nexec /usr/bin/head -c 1000 /dev/zero\n")
    for tool in ("python3", "head"):
        (wicked / tool).chmod(0o755)
    small = a_file(tmp_path / "small", 1000)
    with Sshd(tmp_path / "machines", path=f"{wicked}:/usr/bin:/bin") as host:
        shell = connect(host.address(), known_hosts=gptctl_home / "known_hosts")
        for far in (real, small):
            with pytest.raises(VerificationFailed, match="promised"):
                pull_files(shell, str(tmp_path), tmp_path / "here", {far.name: entry(far)})
        with pytest.raises(VerificationFailed, match="longer than 64 MiB"):
            shell.run(["cat", "/dev/zero"])
        shell.close()
    left = [path for path in (tmp_path / "here").rglob("*") if path.stat().st_size > 2 << 20]
    assert not (tmp_path / "here" / "real").exists() and not (tmp_path / "here" / "small").exists()
    assert left == []


def test_a_changed_source_never_continues_the_old_part(shell: Shell, tmp_path: Path) -> None:
    source, far = a_file(tmp_path / "source", 3 << 20), tmp_path / "far" / "file"
    far.parent.mkdir()
    old = Path(far_program.part_name(str(far), transfer.identity(source)[2]))
    old.write_bytes(source.read_bytes())
    Path(f"{old}.ranges").write_bytes((3 << 20).to_bytes(8, "little"))
    a_file(source, 3 << 20)
    os.utime(source, ns=(1, 1))
    assert push_file(shell, source, str(far)).bytes_sent == 3 << 20
    assert entry(far) == entry(source)
    assert [path.name for path in far.parent.iterdir()] == ["file"]
