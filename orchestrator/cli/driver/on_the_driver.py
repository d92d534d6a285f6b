"""gptctl on the driver: gets it there, and runs its commands there as if they were typed on that machine.

Keys travel with each command, by stdin into the memory of that process and of what it starts; none is written there.
Only keys that the host's `driver_may_hold` names travel at all.

Example::

    with driver_on(home, host, accept_new=False) as driver:
        driver.run(["status", "--json"])
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from orchestrator.cli.connections import shell_to
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.ports import Result, Shell
from orchestrator.runs.own_version import made_by

PACKAGES = ("orchestrator", "trainer", "recipes")
ROOT = Path(__file__).resolve().parents[3]
KEYS: Mapping[str, tuple[str, ...]] = {
    "lambda": ("LAMBDA_API_KEY",),
    "aws": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION",
            "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "hf": ("HF_TOKEN", "HF_STORE_TOKEN"),
}  # fmt: skip
"""What `driver_may_hold` may name, and the variables that go with it."""
PLAIN = ("GPTCTL_REHEARSAL", "GPTCTL_LEASE_S", "OMP_NUM_THREADS", "NO_COLOR")
"""Variables without a secret, which go along."""
INSTALL_WITHIN_S = 900.0
FIND = r"""
import json, os, shutil, subprocess, sys
folder = os.path.abspath(os.path.expanduser(sys.argv[1]))
best = next((found for name in ("python3.13", "python3.12", "python3.11", "python3.14", "python3")
             for found in [shutil.which(name)] if found and subprocess.run(
                 [found, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode == 0), None)
print(json.dumps({"folder": folder, "python": best, "venv": os.path.isfile(folder + "/venv/bin/python")}))
"""
UNPACK = """
import os, sys, zipfile
os.umask(0o077)
archive, folder = sys.argv[1:]
if not os.path.isdir(folder):
    zipfile.ZipFile(archive).extractall(folder + ".new")
    os.rename(folder + ".new", folder)
"""
GO = """
import json, os, sys
line = b""
while not line.endswith(b"\\n"):
    byte = os.read(0, 1)
    if not byte:
        sys.exit("the question never came: the other gptctl, or its link, is gone")
    line += byte
given = json.loads(line)
os.umask(0o077)
os.makedirs(given["environment"]["GPTCTL_HOME"], 0o700, exist_ok=True)
for name in given["without"]:
    os.environ.pop(name, None)
os.environ.update(given["environment"])
os.chdir(given["environment"]["GPTCTL_HOME"])
os.execv(sys.executable, [sys.executable, "-m", "orchestrator"] + given["words"])
"""


@dataclass(frozen=True)
class Driver:
    """gptctl on a host, ready to run."""

    host: HostSpec
    shell: Shell
    python: str
    folder: str
    """The driver's own folder there; its GPTCTL_HOME is `home` in it."""
    code: str
    """PYTHONPATH of gptctl there."""

    def run(self, words: Sequence[str], *, stdin: bytes = b"", deadline_s: float = 600.0) -> Result:
        """A gptctl command there, to its end."""
        return self.shell.run([self.python, "-c", GO], stdin=self.question(words) + stdin, deadline_s=deadline_s)

    def answer(self, words: Sequence[str], *, stdin: bytes = b"", deadline_s: float = 600.0) -> dict[str, object]:
        """The JSON that a gptctl command there prints. Raises CommandFailed with its own words."""
        done = self.run(words, stdin=stdin, deadline_s=deadline_s)
        said = done.stderr.decode(errors="replace").strip()
        if done.code:
            raise CommandFailed(
                f"driver {self.host.name}: {said[-2000:] or f'code {done.code}'}",
                f"gptctl check {self.host.name} --driver",
            )
        try:
            return dict(json.loads(done.stdout))
        except ValueError as error:
            raise CommandFailed(
                f"driver {self.host.name}: `{' '.join(words)}` answered {done.stdout[:200]!r}"
            ) from error

    def question(self, words: Sequence[str]) -> bytes:
        """The line that GO reads: a secret."""
        allowed = [name for kind in self.host.driver_may_hold for name in KEYS[kind]]
        environment = {name: os.environ[name] for name in (*allowed, *PLAIN) if name in os.environ}
        environment |= {"GPTCTL_HOME": f"{self.folder}/home", "PYTHONPATH": self.code, "PYTHONUNBUFFERED": "1"}
        without = [name for names in KEYS.values() for name in names if name not in environment]
        return json.dumps({"words": list(words), "environment": environment, "without": without}).encode() + b"\n"


@contextmanager
def driver_on(home: Path, host: HostSpec, *, accept_new: bool) -> Iterator[Driver]:
    """gptctl on this host; puts it there where this version is missing. Raises UserError for a host that is rented."""
    refuse_rented(host)
    with shell_to(home, host, accept_new=accept_new) as shell:
        yield _ready(shell, host)


def refuse_rented(host: HostSpec) -> None:
    """A driver is a machine of yours: a rented one ends with its run."""
    if host.paid:
        raise UserError(
            f"{host.name} is rented ({host.provider}); a driver is a machine of yours that is always on",
            "name a host of provider ssh, or local",
        )


def _ready(shell: Shell, host: HostSpec) -> Driver:
    if shell.openssh() is None and host.python is None:
        # This computer: the gptctl that runs here, with a home of its own.
        folder = str(Path(host.folder).expanduser() / "driver")
        return Driver(host, shell, sys.executable, folder, str(ROOT))
    found = json.loads(
        _checked(host, shell.run([host.python or "python3", "-c", FIND, f"{host.folder}/driver"])).stdout
    )
    folder, python = str(found["folder"]), host.python or f"{found['folder']}/venv/bin/python"
    code = _put_code(shell, host, folder, host.python or found["python"] or "python3")
    if host.python is None and not found["venv"]:
        _make_environment(shell, host, folder, found["python"])
    return Driver(host, shell, python, folder, code)


def _put_code(shell: Shell, host: HostSpec, folder: str, python: str) -> str:
    """The folder there with this very gptctl; a name per content, so that a running one keeps its own."""
    content = package()
    name = f"gptctl-{hashlib.sha256(content).hexdigest()[:16]}"
    if shell.run([python, "-c", "import os, sys; sys.exit(not os.path.isdir(sys.argv[1]))", f"{folder}/{name}"]).code:
        _checked(host, shell.run([python, "-c", "import os, sys; os.makedirs(sys.argv[1], 0o700, True)", folder]))
        with tempfile.TemporaryDirectory() as temporary:
            archive = Path(temporary) / f"{name}.zip"
            archive.write_bytes(content)
            shell.put(archive, f"{folder}/{name}.zip", mode=0o600, deadline_s=INSTALL_WITHIN_S)
        _checked(host, shell.run([python, "-c", UNPACK, f"{folder}/{name}.zip", f"{folder}/{name}"], deadline_s=120))
    return f"{folder}/{name}"


def package() -> bytes:
    """A zip of gptctl as it is installed here: sources and what they read, with fixed times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for root in (ROOT / name for name in PACKAGES):
            for path in sorted(root.rglob("*") if root.is_dir() else ()):
                if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".pyc", ".so")):
                    archive.writestr(
                        zipfile.ZipInfo(path.relative_to(ROOT).as_posix(), (1980, 1, 1, 0, 0, 0)), path.read_bytes()
                    )
        info = f"Metadata-Version: 2.1\nName: gptctl\nVersion: {made_by().split()[1]}\n"
        archive.writestr(zipfile.ZipInfo("gptctl-0.dist-info/METADATA", (1980, 1, 1, 0, 0, 0)), info)
    return buffer.getvalue()


def needed_packages() -> list[str]:
    """What gptctl itself needs, as pip takes it; the extra `aws` too, since a driver presigns and rents."""
    try:
        named = requires("gptctl") or []
    except PackageNotFoundError:
        return []
    own = [each for each in named if "extra ==" not in each]
    return own + [each.partition(";")[0].strip() for each in named if "extra == 'aws'" in each.replace('"', "'")]


def _make_environment(shell: Shell, host: HostSpec, folder: str, python: str | None) -> None:
    if python is None:
        raise UserError(
            f"{host.name} has no Python 3.11 or newer", f"install one there, or name one in hosts.{host.name}.python"
        )
    made = shell.run([python, "-m", "venv", f"{folder}/venv.new"], deadline_s=INSTALL_WITHIN_S)
    _checked(host, made, "apt install python3-venv there, or name an interpreter with gptctl's packages in `python`")
    pip = [
        f"{folder}/venv.new/bin/python",
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        *needed_packages(),
    ]
    _checked(host, shell.run(pip, deadline_s=INSTALL_WITHIN_S), "let it reach a package index, or name `python`")
    # A venv that moved keeps its interpreter and its packages; only scripts in bin/ name the old folder.
    _checked(host, shell.run(["mv", f"{folder}/venv.new", f"{folder}/venv"]))


def _checked(host: HostSpec, done: Result, hint: str = "") -> Result:
    if done.code:
        said = done.stderr.decode(errors="replace").strip()[-1500:]
        raise CommandFailed(f"driver {host.name}: `{' '.join(done.argv)[:80]}`: {said or done.code}", hint)
    return done
