"""A new host key for the machine's own sshd, made there: the one it was born with stood in data that anybody on the
machine can read.

In two steps, so that the laptop can pin the new key before it is shown: `stage` makes it beside the old one, `install`
puts it in its place and has sshd read it. It must not touch the configuration, nor end a session.

Example::

    stage()          # {'changeable': True, 'public': 'ssh-ed25519 AAAA...', 'file': '/etc/ssh/ssh_host_ed25519_key'}
    install()        # the same, once sshd reads the new key
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

from ..contract.answers import HostKey
from ..system import processes

SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
DEADLINE_S = 20.0
KIND = "ssh-ed25519"
STAGED = ".gptctl-next"
NAMES = ("sshd", "sshd-session")


class Unchangeable(Exception):
    """This machine does not let us: its message says why."""


def stage() -> HostKey:
    """The key that `install` will put in place; made once, and found again when asked again."""
    try:
        return _stage(_Sshd())
    except Unchangeable as why:
        return {"changeable": False, "why": str(why)}


def install() -> HostKey:
    """Puts the staged key in place and has sshd read it; sessions go on. Nothing staged: `changeable` is false."""
    try:
        sshd = _Sshd()
        public = _read(sshd, sshd.key_file + STAGED + ".pub")
        _as_root("mv", "-f", sshd.key_file + STAGED, sshd.key_file)
        _as_root("mv", "-f", sshd.key_file + STAGED + ".pub", sshd.key_file + ".pub")
        sshd.check()
        if sshd.pid:
            _as_root("kill", "-%d" % signal.SIGHUP, str(sshd.pid))
    except Unchangeable as why:
        return {"changeable": False, "why": str(why)}
    return {"changeable": True, "public": public, "file": sshd.key_file}


def _stage(sshd: _Sshd) -> HostKey:
    staged = sshd.key_file + STAGED
    try:
        # Complete only when it is readable as a key; a maker that was killed may have left half of one.
        _as_root("ssh-keygen", "-y", "-P", "", "-f", staged)
        public = _read(sshd, staged + ".pub")
    except Unchangeable:
        _as_root("rm", "-f", staged, staged + ".pub")
        _as_root("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gptctl", "-f", staged)
        public = _read(sshd, staged + ".pub")
    return {"changeable": True, "public": public, "file": sshd.key_file}


class _Sshd:
    """The sshd that we came in by: its process, its configuration, its ed25519 key."""

    def __init__(self) -> None:
        self.pid = _listener()
        self.config = _config_of(self.pid)
        settings = [line.split(None, 1) for line in self._ask("-T").splitlines()]
        files = [line[1] for line in settings if len(line) == 2 and line[0].lower() == "hostkey"]
        known = [file for file in files if _kind(file) == KIND]
        if not known:
            raise Unchangeable("sshd has no %s host key: %s" % (KIND, ", ".join(files) or "none"))
        self.key_file = known[0]

    def check(self) -> None:
        """Whether sshd would start with the files as they are now."""
        self._ask("-t")

    def _ask(self, option: str) -> str:
        program = shutil.which("sshd", path="%s:%s" % (os.environ.get("PATH", ""), SYSTEM_PATH))
        if not program:
            raise Unchangeable("no sshd program found")
        return _as_root(program, option, *(["-f", self.config] if self.config else []))


def _listener() -> int | None:
    """The sshd that listens: the last of those right above this process. None where each connection has its own.

    Not the topmost of all: this machine may itself be a guest of one that was reached by ssh.
    """
    pid = processes.parent(os.getpid())
    while pid > 1 and _name(pid) not in NAMES:
        pid = processes.parent(pid)
    if pid <= 1:
        raise Unchangeable("this session does not come from an sshd that can be seen here")
    while _name(processes.parent(pid)) in NAMES:
        pid = processes.parent(pid)
    return pid if any(word.endswith("/sshd") for word in _title(pid)) else None


def _name(pid: int) -> str:
    try:
        with open("/proc/%d/comm" % pid) as file:
            return file.read().strip()
    except OSError:
        return ""


def _title(pid: int) -> list[str]:
    """The words of its command line: `sshd: /usr/sbin/sshd -D -f FILE [listener] ...`, or `sshd: me@notty`."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        return []


def _config_of(pid: int | None) -> str | None:
    """The file after -f on its command line; None where it is sshd's usual one."""
    words = _title(pid) if pid else []
    places = [index for index, word in enumerate(words[:-1]) if word == "-f"]
    return words[places[0] + 1] if places else None


def _kind(file: str) -> str:
    try:
        return (_as_root("cat", file + ".pub").split() or [""])[0]
    except Unchangeable:
        return ""


def _read(sshd: _Sshd, file: str) -> str:
    """A public key, `KIND BASE64`."""
    words = _as_root("cat", file).split()
    if len(words) < 2 or words[0] != KIND:
        raise Unchangeable("%s is not a %s key" % (file, KIND))
    return " ".join(words[:2])


def _as_root(*argv: str) -> str:
    """What the command printed. Asks for no password: without rights this machine stays as it is."""
    words = list(argv) if os.geteuid() == 0 else ["sudo", "-n", *argv]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unchangeable("%s: %s" % (argv[0], error)) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["code %d" % done.returncode]
        raise Unchangeable("%s: %s" % (os.path.basename(argv[0]), said[0]))
    return done.stdout.decode(errors="replace")
