"""Machines of the rehearsal cloud: a real sshd, the user data applied, and nothing left after terminate."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock.waiting import until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud, processes_with
from tests.support.files.canary import content
from tests.support.machines.sshd import fingerprint


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    with RehearsalCloud(tmp_path / "cloud") as running:
        yield running


def user_data(**config: object) -> str:
    return "#cloud-config\n" + json.dumps(config)


def detached(cloud: RehearsalCloud, instance_id: str, prefix: str = "") -> list[int]:
    """Starts a process that left its session, told by a word nobody else uses; its pids."""
    word = f"rehearsal-{uuid.uuid4().hex}"
    done = cloud.ssh(instance_id, f"setsid -f {prefix} sh -c 'sleep 600; true' {word} >/dev/null 2>&1 </dev/null")
    assert done.returncode == 0, done.stderr
    until(lambda: processes_with(word) != [])
    return processes_with(word)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if content(Path(f"/proc/{pid}/cmdline"))]


def test_a_launched_machine_answers_ssh_in_a_clean_home(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    said = cloud.ssh(box, "env; ls -A; pwd").stdout.splitlines()
    home = str(cloud.home(box))
    assert f"HOME={home}" in said and said[-2:] == [".ssh", home]
    names = {line.partition("=")[0] for line in said if "=" in line}
    usual = {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "TERM", "PWD", "SSH_CONNECTION"}
    assert names == usual | {"GPTCTL_MEMORY"}


def test_only_the_key_named_at_launch_is_let_in(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    cloud.user_key = cloud.make_key("stranger")
    refused = cloud.ssh(box, "true")
    assert refused.returncode == 255 and "Permission denied" in refused.stderr


def test_the_injected_host_key_is_shown(cloud: RehearsalCloud) -> None:
    pair = cloud.make_key("host_key")
    keys = {"ed25519_private": pair.read_text(), "ed25519_public": pair.with_suffix(".pub").read_text()}
    box = cloud.up(user_data=user_data(ssh_keys=keys))
    assert cloud.shown_host_key(box) == fingerprint(pair.with_suffix(".pub"))


def test_an_image_that_ignores_user_data_shows_another_key(cloud: RehearsalCloud) -> None:
    cloud.inject("host-key-ignored")
    pair = cloud.make_key("host_key")
    keys = {"ed25519_private": pair.read_text(), "ed25519_public": pair.with_suffix(".pub").read_text()}
    box = cloud.up(user_data=user_data(ssh_keys=keys))
    assert cloud.shown_host_key(box) != fingerprint(pair.with_suffix(".pub"))


def test_the_host_key_can_be_replaced_over_the_first_session(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    before = cloud.shown_host_key(box)
    said = dict(line.split(" ", 1) for line in cloud.ssh(box, "sudo -n sshd -T").stdout.splitlines() if " " in line)
    new = cloud.make_key("new_host_key")
    put = [*cloud.ssh_argv(box), f"sudo tee {said['hostkey']} >/dev/null && sudo kill -HUP $(cat {said['pidfile']})"]
    subprocess.run(put, input=new.read_bytes(), check=True, timeout=120)
    until(lambda: cloud.shown_host_key(box) == fingerprint(new.with_suffix(".pub")))
    assert cloud.shown_host_key(box) != before


def test_files_and_commands_of_the_user_data(cloud: RehearsalCloud, tmp_path: Path) -> None:
    files = [
        {"path": "/home/ubuntu/note", "content": "aGk=", "encoding": "b64", "permissions": "0600"},
        {"path": "/etc/gptctl-rehearsal-test", "content": "x"},
        {"path": f"/../..{tmp_path}/outside", "content": "x"},
    ]
    box = cloud.up(user_data=user_data(write_files=files, runcmd=["echo one > ran", ["sh", "-c", "echo two >> ran"]]))
    until(lambda: cloud.ssh(box, "cat ran").stdout == "one\ntwo\n")
    assert cloud.ssh(box, "cat note; stat -c %a note").stdout == "hi600\n"
    assert not Path("/etc/gptctl-rehearsal-test").exists() and not (tmp_path / "outside").exists()
    assert (cloud.machine_folder(box) / "disk/etc/gptctl-rehearsal-test").read_text() == "x"


def test_files_can_be_copied_with_sftp_and_rsync(cloud: RehearsalCloud, tmp_path: Path) -> None:
    box = cloud.up()
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("a")
    *ssh, target = cloud.ssh_argv(box)
    subprocess.run(["rsync", "-a", "-e", " ".join(ssh), f"{source}/", f"{target}:there/"], check=True, timeout=240)
    copy = ["scp", *("-P" if word == "-p" else word for word in ssh[1:]), str(source / "a"), f"{target}:there/b"]
    subprocess.run(copy, check=True, capture_output=True, timeout=240)
    assert cloud.ssh(box, "cat there/a there/b").stdout == "aa"


@pytest.mark.parametrize("prefix", ["", "env -i", "setsid -f env -i setsid"])
def test_terminate_ends_every_process_whatever_it_did_to_hide(cloud: RehearsalCloud, prefix: str) -> None:
    box = cloud.up()
    pids = detached(cloud, box, prefix)
    assert alive(pids) == pids
    assert [one["id"] for one in cloud.terminate(box)] == [box]
    cloud.wait_for(box, None)
    assert alive(pids) == []
    assert not cloud.machine_folder(box).exists()
    assert processes_with(str(cloud.machine_folder(box))) == []


def test_machines_live_on_while_the_server_is_down_and_are_found_again(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    pids = detached(cloud, box)
    cloud.program("--stop")
    assert alive(pids) == pids
    url = cloud.entry["url"]
    assert cloud.start()["url"] == url
    assert cloud.statuses() == {box: "active"}
    assert cloud.ssh(box, "echo here").stdout == "here\n"
    assert alive(pids) == pids


def test_a_shutdown_from_inside_ends_the_machine_and_not_the_bill(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    pids = detached(cloud, box)
    cloud.ssh(box, "sudo shutdown -h now")
    until(lambda: alive(pids) == [])
    until(lambda: cloud.ssh(box, "true").returncode == 255)
    assert cloud.statuses() == {box: "active"}
    assert cloud.row(box)["alive"] and cloud.row(box)["terminated_at"] is None
    cloud.program("--stop")
    cloud.start()
    assert cloud.ssh(box, "true").returncode == 255


def test_a_reboot_ends_what_ran_and_comes_back(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    pids = detached(cloud, box)
    cloud.ssh(box, "echo kept > file; sudo reboot")
    until(lambda: alive(pids) == [])
    until(lambda: cloud.ssh(box, "cat file").stdout == "kept\n")
    assert cloud.statuses() == {box: "active"} and alive(pids) == []


def test_its_memory_is_its_own_and_goes_with_its_power(cloud: RehearsalCloud) -> None:
    box, other = cloud.up(), cloud.up()
    mine, its = (Path(cloud.ssh(each, 'cd "$GPTCTL_MEMORY" && touch key && pwd').stdout[:-1]) for each in (box, other))
    assert mine.parent == its.parent == Path("/dev/shm") and mine != its
    assert mine.stat().st_mode & 0o777 == 0o700
    cloud.ssh(box, "sudo reboot")
    until(lambda: cloud.ssh(box, 'ls -A "$GPTCTL_MEMORY" && echo up').stdout == "up\n")
    assert (its / "key").exists()
    cloud.ssh(other, "sudo poweroff")
    until(lambda: not its.exists())
    cloud.terminate(box)
    until(lambda: not mine.exists())


@pytest.mark.nightly
def test_torch_fails_on_a_machine_with_a_bad_gpu_and_only_there(cloud: RehearsalCloud) -> None:
    probe = "python3 -c 'import torch; print(torch.ones(2).sum())'"
    good = cloud.up()
    cloud.inject("bad-gpu")
    bad = cloud.up()
    assert cloud.ssh(good, probe).stdout == "tensor(2.)\n"
    failed = cloud.ssh(bad, probe)
    assert failed.returncode == 1 and "CUDA error 802" in failed.stderr
    assert cloud.ssh(bad, "python3 -c 'import json; print(1)'").stdout == "1\n"


def write_step(cloud: RehearsalCloud, box: str, step: int) -> None:
    folder = cloud.home(box) / ".gptctl/runs/some-run"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": step}) + '\n{"step": 99')


def test_sessions_are_cut_once_a_run_is_under_way_and_jobs_live_on(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    pids = detached(cloud, box)
    cloud.inject("ssh-drop")
    with subprocess.Popen([*cloud.ssh_argv(box), "echo up; sleep 600"], stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None and follower.stdout.readline() == "up\n"
        assert cloud.fired() == []
        write_step(cloud, box, 5)
        assert follower.wait(timeout=80) == 255
    assert cloud.fired() == ["ssh-drop"]
    assert alive(pids) == pids
    assert cloud.ssh(box, "echo again").stdout == "again\n"


def test_a_preempted_machine_is_gone_and_its_bill_has_ended(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    pids = detached(cloud, box)
    cloud.inject("preempt@50")
    write_step(cloud, box, 49)
    assert cloud.statuses() == {box: "active"}
    write_step(cloud, box, 50)
    cloud.wait_for(box, "preempted")
    until(lambda: alive(pids) == [])
    row = cloud.row(box)
    assert not row["alive"] and row["billed_minutes"] == 1 and cloud.fired() == ["preempt"]
    cloud.terminate(box)
    cloud.wait_for(box, None)
    assert cloud.row(box)["terminated_at"] == row["terminated_at"]


def test_the_machine_reboots_at_a_step(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    pids = detached(cloud, box)
    cloud.inject("reboot@3")
    write_step(cloud, box, 3)
    until(lambda: alive(pids) == [])
    until(lambda: cloud.ssh(box, "echo back").stdout == "back\n")
    assert cloud.fired() == ["reboot"]


def test_the_next_machine_can_get_the_address_of_the_last(cloud: RehearsalCloud) -> None:
    first = cloud.up()
    address, key = cloud.get(f"instances/{first}")["ip"], cloud.shown_host_key(first)
    cloud.terminate(first)
    cloud.wait_for(first, None)
    cloud.inject("reused-ip")
    second = cloud.up()
    assert cloud.get(f"instances/{second}")["ip"] == address
    assert cloud.shown_host_key(second) != key
