"""`gptctl check HOST` and `gptctl run` agree: on each of these boxes, real sshds, both work or both name the cause.

Each test is one box. A box that works trains ten steps; one that does not ends with exit code 4 and the same words.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.support.clock.waiting import until
from tests.support.files.recipes import write_small
from tests.support.machines import known_interpreter
from tests.support.machines.security_key import SecurityKeyAgent
from tests.support.machines.sshd import LIMITS, Sshd

pytestmark = pytest.mark.faults

OURS = f'python = "{sys.executable}"\n'
OLD = "#!/bin/sh\necho 'SyntaxError: this is Python 3.6' >&2\nexit 1\n"
WRAPPER = '#!/bin/sh\nexec {python} "$@"\n'


@dataclass(frozen=True)
class Box:
    """How a box differs from a good one, and what is said of it; no words: it works."""

    says: str = ""
    login_shell: str = "/bin/sh"
    files: dict[str, str] = field(default_factory=dict)
    """In the home folder there."""
    python3: str | None = "as it is"
    """None: there is none; a script: that is it."""
    entry: str = OURS
    login: str = ""
    """The forced command instead of a login shell."""
    limits: str = LIMITS
    key: str = ""
    """How you log in: pkcs8, agent or token."""
    mount: str = ""
    """Options of the file system that `folder` is on."""


BOXES = {
    "a login that prints": Box(login_shell="/bin/bash", files={".bashrc": "echo Welcome; echo '{\"a\": 1}'\n"}),
    "a login that prints at its end": Box(login_shell="/bin/bash", files={".bashrc": "trap 'echo bye' EXIT\n"}),
    "tcsh": Box(login_shell="/usr/bin/tcsh", files={".cshrc": "echo hello\n"}),
    "csh": Box(login_shell="/usr/bin/bsd-csh"),
    "fish": Box(login_shell="/usr/bin/fish"),
    "no python3": Box(python3=None),
    "no python3, and none named": Box(python3=None, entry="", says="cannot run its Python"),
    "a python3 of long ago": Box(python3=OLD),
    "python under ~": Box(
        python3=None, entry='python = "~/venv/bin/python"\n',
        files={"venv/bin/python": WRAPPER.format(python=sys.executable)},
    ),
    "a key in PKCS#8": Box(key="pkcs8"),
    "an agent that the config names": Box(key="agent"),
    "a security key": Box(key="token"),
    "MaxSessions 1, MaxStartups 1": Box(limits="MaxSessions 1\nMaxStartups 1\n"),
    "another user's image": Box(
        login="echo 'Please login as the user \"ubuntu\".'; exit 142", says='the user "ubuntu"'
    ),
    "nologin": Box(login="echo This account is currently not available.; exit 1", says="not available"),
    "SFTP only": Box(login="exec /usr/lib/openssh/sftp-server", says="ran no command"),
    "a full disk": Box(mount="size=64k", says="No space left"),
    "no room for files": Box(mount="nr_inodes=4", says="No space left"),
    "a read-only folder": Box(mount="ro", says="Read-only file system"),
    "noexec, python elsewhere": Box(mount="noexec"),
}  # fmt: skip


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("name", BOXES)
def test_check_and_run_agree(
    name: str, gptctl: Gptctl, gptctl_home: Path, machines: Callable[..., Sshd], tmp_path: Path, stack: ExitStack
) -> None:
    box = BOXES[name]
    (machine, folder), env = _started(box, machines, tmp_path, stack), _login(box, tmp_path)
    entry = machine.inventory_entry(machine="1xCPU", extra=box.entry + (f'folder = "{folder}"\n' if folder else ""))
    if box.key:
        entry = re.sub("ssh_key.*\n", "", entry)
        _key(box.key, machine, tmp_path, stack)
    (tmp_path / "inventory.toml").write_text(entry)
    write_small(tmp_path, steps=10, every=10)
    checked = gptctl("check", "box", env=env)
    ran = gptctl("run", "tiny.toml", "--host", "box", "--yes", env=env)
    said = checked.stdout + checked.stderr, ran.stdout + ran.stderr
    if box.says:
        assert [box.says in each for each in said] == [True, True], said
    assert (checked.returncode, ran.returncode) == ((4, 4) if box.says else (0, 0)), said
    assert "bug" not in said[1] and "Traceback" not in said[1]


def _started(box: Box, machines: Callable[..., Sshd], tmp_path: Path, stack: ExitStack) -> tuple[Sshd, Path | None]:
    """The machine, and its folder where that is not the usual one."""
    path = {} if box.python3 == "as it is" else {"path": _programs(tmp_path / "bin", box.python3)}
    machine = machines("box", login_shell=box.login_shell, limits=box.limits, **path)
    for name, text in box.files.items():
        (machine.home / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.home / name).write_text(text)
        (machine.home / name).chmod(0o755)
    if box.login:
        (machine.folder / "login").write_text(f"#!/bin/sh\n{box.login}\n")
    if not box.mount:
        known_interpreter.plant(machine.home / ".gptctl")
        return machine, None
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", box.mount, "tmpfs", str(mounted)], check=True)
    stack.callback(subprocess.run, ["umount", "-l", str(mounted)], check=True)
    return machine, mounted / "gptctl"


def _programs(folder: Path, python3: str | None) -> str:
    """A PATH with the system's programs and another python3, or none."""
    folder.mkdir()
    for place in (Path("/usr/bin"), Path("/bin")):
        for program in place.iterdir():
            if not program.name.startswith("python") and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    if python3 is not None:
        (folder / "python3").write_text(python3)
        (folder / "python3").chmod(0o755)
    return str(folder)


def _login(box: Box, tmp_path: Path) -> dict[str, str]:
    """The environment of gptctl."""
    home = Path(os.environ["HOME"])
    (home / ".ssh").mkdir(exist_ok=True)
    if box.key == "pkcs8":
        (home / ".ssh" / "config").write_text(f"Host *\n  IdentityFile {tmp_path}/pkcs8\n")
    elif box.key:
        (home / ".ssh" / "config").write_text(f"Host *\n  IdentityAgent {tmp_path}/agent.sock\n")
    return {}


def _key(kind: str, machine: Sshd, tmp_path: Path, stack: ExitStack) -> None:
    """The box accepts the key that ~/.ssh/config leads to, and no other."""
    accepted = machine.folder / "authorized_keys"
    socket = tmp_path / "agent.sock"
    if kind == "pkcs8":
        file = tmp_path / "pkcs8"
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-m", "PKCS8", "-N", "", "-f", str(file)], check=True)
        accepted.write_text(file.with_suffix(".pub").read_text())
    elif kind == "token":
        accepted.write_text(stack.enter_context(SecurityKeyAgent(socket)).public)
    else:
        agent = stack.enter_context(subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL))
        stack.callback(agent.terminate)
        until(socket.exists)
        env = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        subprocess.run(["ssh-add", "-q", str(machine.key_file)], env=env, check=True)
