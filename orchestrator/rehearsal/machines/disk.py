"""The disk of a machine: a folder with keys, a clean home, stand-ins for programs that need root, and the user data.

Writes nothing outside the folder: a file that user data puts at /etc/x becomes FOLDER/disk/etc/x. Without the
stand-ins, a `shutdown` meant for the machine would switch off your computer.

Example: `write_disk(Disk(folder, "127.80.3.9", 2222, sys.executable), authorized_key, user_data)`
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from orchestrator.rehearsal.machines import cloud_config
from orchestrator.rehearsal.machines.cloud_config import CloudConfig

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
POWERED_OFF = "powered-off"
"""A file that exists once the machine shut itself down; such a machine stays off and billed."""

SHARED_MEMORY = Path("/dev/shm")
MEMORY_VARIABLE = "GPTCTL_MEMORY"
"""Names the machine's own folder in memory, where the agent keeps secrets."""

HALTED = "halted"
"""A file that exists too after `halt`, which leaves the power on."""

SSHD_CONFIG = """
Port {port}
ListenAddress {address}
HostKey {folder}/etc/ssh/ssh_host_ed25519_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/home/.ssh/authorized_keys
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100:30:200
MaxSessions 100
PrintMotd no
Subsystem sftp {sftp}
SetEnv HOME={folder}/home
ForceCommand {folder}/login
"""

# Every session starts with a clean environment: nothing of your environment reaches the machine. SetEnv, because sshd
# runs the forced command in the user's shell, and bash then reads ~/.bashrc, which is slow and can hang.
LOGIN = """#!/bin/sh
cd {home} || exit
exec env -i {variables} SSH_CONNECTION="$SSH_CONNECTION" TERM="${{TERM:-dumb}}" \\
    /bin/sh -c "${{SSH_ORIGINAL_COMMAND:-exec /bin/bash --noprofile --norc -i}}"
"""

SUDO = """#!/bin/sh
# This machine has one user, who owns everything on it.
while [ "${1#-}" != "$1" ]; do
    case "$1" in -u|-g) shift 2 ;; --) shift; break ;; *) shift ;; esac
done
exec "$@"
"""
SIGNAL_FIRST_PROCESS = """#!/bin/sh
kill -{signal} $(cat {folder}/first_process.pid)
"""
# As sysvinit's: it waits in the foreground, for minutes, and -c ends the one that waits.
SHUTDOWN = """#!/bin/sh
minutes=0 signal=TERM
for word in "$@"; do
    case "$word" in
        -c) [ -r {folder}/shutdown.pid ] && kill $(cat {folder}/shutdown.pid); exit ;;
        -r) signal=USR1 ;;
        +*) minutes=${{word#+}} ;;
    esac
done
if [ "$minutes" -gt 0 ]; then
    echo $$ > {folder}/shutdown.pid
    sleep $((60 * minutes))
fi
kill -$signal $(cat {folder}/first_process.pid)
"""
HALT = """#!/bin/sh
touch {folder}/halted
kill -TERM $(cat {folder}/first_process.pid)
"""
SYSTEMCTL = """#!/bin/sh
case "$*" in
    *reload*ssh*|*restart*ssh*) exec kill -HUP $(cat {folder}/sshd.pid) ;;
    *) echo "systemctl: System has not been booted with systemd (a rehearsal machine)" >&2; exit 1 ;;
esac
"""
BAD_GPU = """
# This machine has a broken card: it answers and computes, but not with torch.
import sys


class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise RuntimeError("CUDA error 802: system not yet initialized")
        return None


sys.meta_path.insert(0, Broken())
"""
# An isolated interpreter (-I) imports no sitecustomize, so this wrapper changes what it reports.
NEWER_PYTHON = """#!/bin/sh
[ "$1 $2" = "-I -S" ] || exec {python} "$@"
exec {python} -I -S -c 'import platform, sys
platform.release = lambda: "99.0-newer-image"
code, sys.argv = sys.argv[4], ["-c", *sys.argv[5:]]
exec(code)' "$@"
"""

SHIFTED_PYTHON = """#!/bin/sh
# A machine whose clock is wrong: for every isolated interpreter, such as the agent's.
[ "$1 $2" = "-I -S" ] || exec {python} "$@"
exec {python} -I -S -c 'import runpy, sys, time
true_time = time.time
time.time = lambda: true_time() + {seconds}
sys.executable, words = sys.argv[1], sys.argv[4:]
if words[0] == "-c":
    sys.argv = ["-c", *words[2:]]
    exec(words[1], {{"__name__": "__main__"}})
else:
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")' "$0" "$@"
"""


@dataclass(frozen=True)
class Disk:
    """The folder of a machine and its SSH address."""

    folder: Path
    address: str
    port: int
    python: str
    """The `python3` of the machine: an interpreter with torch makes a warm image."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def memory(self) -> Path:
        """The machine's own folder for files in memory; power-off removes it."""
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
        return SHARED_MEMORY / f"gptctl-rehearsal-{os.getuid()}-{digest}"

    @property
    def mark(self) -> bytes:
        """What every process of the machine, and no other, has in its environment."""
        return f"HOME={self.home}".encode()

    def variables(self) -> dict[str, str]:
        """The environment of a login."""
        bad = {"PYTHONPATH": str(self.folder / "bad-gpu")} if (self.folder / "bad-gpu").exists() else {}
        user = getpass.getuser()
        path = f"{self.folder / 'bin'}:{SYSTEM_PATH}"
        return {"HOME": str(self.home), "USER": user, "LOGNAME": user, "SHELL": "/bin/sh", "PATH": path,
                "LANG": "C.UTF-8", MEMORY_VARIABLE: str(self.memory), **bad}  # fmt: skip


def write_disk(
    disk: Disk, authorized_key: str, user_data: str, *, faults: Collection[str] = (), image: Path | None = None
) -> None:
    """Writes what a machine has before it boots. The folder must not exist yet. faults: as in faults.py; image: a
    folder whose content its home begins with."""
    if image is not None:
        shutil.copytree(image, disk.home)
    ssh = disk.home / ".ssh"
    ssh.mkdir(parents=True, mode=0o700, exist_ok=True)
    (ssh / "authorized_keys").write_text(authorized_key.strip() + "\n")
    config = _config(disk, user_data)
    _host_key(disk, {} if "host-key-ignored" in faults else config.get("ssh_keys") or {})
    if "bad-gpu" in faults:
        _put(disk.folder / "bad-gpu" / "sitecustomize.py", BAD_GPU)
    _programs(disk)
    if "newer-image" in faults:
        _put(disk.folder / "bin" / "python3", NEWER_PYTHON.format(python=shlex.quote(disk.python)), mode=0o755)
    for fault in faults:
        if fault.startswith("clock-off@"):
            text = SHIFTED_PYTHON.format(python=shlex.quote(disk.python), seconds=float(fault.partition("@")[2]))
            _put(disk.folder / "bin" / "python3", text, mode=0o755)
    for entry in config.get("write_files") or []:
        _write_file(disk, entry)
    for key in config.get("ssh_authorized_keys") or []:
        with (ssh / "authorized_keys").open("a") as file:
            file.write(f"{key}\n")
    _put(disk.folder / "boot.json", json.dumps(_commands(config)))


def log(disk: Disk, line: str) -> None:
    """One line in the machine's console log."""
    with (disk.folder / "console.log").open("a") as file:
        file.write(line + "\n")


def _config(disk: Disk, user_data: str) -> CloudConfig:
    try:
        return cloud_config.parse(user_data) if user_data.strip() else {}
    except ValueError as error:
        log(disk, f"user data ignored: {error}")
        return {}


def _commands(config: CloudConfig) -> dict[str, list[list[str]]]:
    """Argument lists: bootcmd first at every boot; runcmd and a script once, as cloud-init's last step."""
    found = {
        when: [[str(word) for word in one] if isinstance(one, list) else ["sh", "-c", str(one)] for one in listed or []]
        for when, listed in (("every_boot", config.get("bootcmd")), ("once", config.get("runcmd")))
    }
    if "script" in config:
        found["once"].append(["sh", "-c", config["script"]])
    return found


def _host_key(disk: Disk, given: dict[str, str]) -> None:
    """Writes the injected ed25519 pair, or generates one, as an image that ignores user data does."""
    file = disk.folder / HOST_KEY
    if "ed25519_private" in given:
        _put(file, given["ed25519_private"].rstrip("\n") + "\n")
        _put(file.with_suffix(".pub"), str(given.get("ed25519_public", "")).strip() + "\n")
        return
    file.parent.mkdir(parents=True)
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "root@rehearsal", "-f", str(file)]
    subprocess.run(make, check=True, capture_output=True, timeout=20)


def write_sshd_config(disk: Disk) -> None:
    """Makes sshd listen at the machine's address from its next start on."""
    sftp = next((path for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server",
                                   "/usr/lib/ssh/sftp-server") if os.path.exists(path)), "internal-sftp")  # fmt: skip
    text = SSHD_CONFIG.format(port=disk.port, address=disk.address, folder=disk.folder, sftp=sftp)
    _put(disk.folder / "etc/ssh/sshd_config", text)


def _programs(disk: Disk) -> None:
    """Writes the login, sshd's configuration, and stand-ins for programs that would act on the whole computer."""
    folder = disk.folder
    write_sshd_config(disk)
    variables = " ".join(shlex.quote(f"{key}={value}") for key, value in disk.variables().items())
    quoted = shlex.quote(str(folder))
    programs = {
        "login": LOGIN.format(home=shlex.quote(str(disk.home)), variables=variables),
        "bin/sudo": SUDO,
        "bin/systemctl": SYSTEMCTL.format(folder=quoted),
        "bin/sshd": f'#!/bin/sh\nexec {sshd_program()} -f {quoted}/etc/ssh/sshd_config "$@"\n',
        "bin/python3": f'#!/bin/sh\nexec {shlex.quote(disk.python)} "$@"\n',
        "bin/shutdown": SHUTDOWN.format(folder=quoted),
        "bin/poweroff": SIGNAL_FIRST_PROCESS.format(signal="TERM", folder=quoted),
        "bin/halt": HALT.format(folder=quoted),
        "bin/reboot": SIGNAL_FIRST_PROCESS.format(signal="USR1", folder=quoted),
    }
    for name, text in programs.items():
        _put(folder / name, text, mode=0o755)


def sshd_program() -> str:
    """Path of sshd. Raises FileNotFoundError with what to install."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")
    if not found:
        raise FileNotFoundError("sshd is missing: install it (apt install openssh-server); the service need not run")
    return found


def _write_file(disk: Disk, entry: CloudConfig) -> None:
    content = str(entry.get("content") or "")
    encoding = str(entry.get("encoding") or "")
    data = base64.b64decode(content) if encoding in ("b64", "base64") else content.encode()
    target = _place(disk, str(entry["path"]))
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab" if entry.get("append") else "wb") as file:
        file.write(data)
    target.chmod(int(str(entry.get("permissions") or "0644"), 8))


def _place(disk: Disk, path: str) -> Path:
    """Path on this computer of a file of the machine; normalised first, so that `..` cannot leave the folder."""
    inside = os.path.normpath("/" + path.lstrip("/"))
    for prefix in ("/home/ubuntu/", f"{disk.home}/"):
        if inside.startswith(prefix):
            return disk.home / inside[len(prefix) :]
    return disk.folder / "disk" / inside.lstrip("/")


def _put(file: Path, text: str, mode: int = 0o600) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
