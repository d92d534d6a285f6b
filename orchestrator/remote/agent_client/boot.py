"""How a call reaches the agent: the few lines that start it on the machine, and what they, or it, refuse.

Example: `python3 -I -S -c BOOT ~/.gptctl/agent/agent-HASH.pyz status`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from orchestrator.agent.contract.answers import Failure
from orchestrator.agent.contract.names import BootCode, Code
from orchestrator.core.errors import AgentError, MachineUnfit
from orchestrator.remote.agent_client.decoding import decoded, refuse
from orchestrator.remote.agent_client.package import agent_package

BOOT = """\
import json, os, sys
os.umask(0o077)
path = os.path.abspath(os.path.expanduser(sys.argv[1]))
def refuse(code, message):
    print(json.dumps({"error": {"code": code, "message": message, "hint": "", "path": path}}))
    sys.exit(1)
if sys.version_info < (3, 8):
    refuse("python-too-old", "%s is Python %d.%d; the agent needs 3.8" % ((sys.executable,) + sys.version_info[:2]))
if not os.path.isfile(path):
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    except OSError as error:
        code = {28: "disk-full", 30: "read-only", 13: "read-only"}.get(error.errno, "no-folder")
        refuse(code, "cannot make %s: %s" % (os.path.dirname(path), error.strerror))
    refuse("agent-missing", "no agent at " + path)
code = made = path
try:
    with open("/proc/sys/kernel/random/boot_id") as file:
        code = path[:-4] + "-" + file.read(8)
    if not os.path.isdir(code):
        import shutil, tempfile, zipfile
        made = tempfile.mkdtemp(dir=os.path.dirname(path))
        with zipfile.ZipFile(path) as archive:
            archive.extractall(made)
        os.rename(made, code)
except OSError:
    if made != path:
        shutil.rmtree(made, ignore_errors=True)
    code = code if os.path.isdir(code) else path
sys.path.insert(0, code)
from agent.__main__ import main
sys.exit(main([code] + sys.argv[2:]))
"""
"""Runs the agent, or says what is in the way: one round trip answers both, and `~` is resolved over there.

Every process that imports a zipapp compiles it again, so its files are unpacked beside it once and Python keeps what
it compiles: a call takes two thirds of the time. The folder counts for one boot: a crash may leave it half written.
"""

UNFIT = frozenset({BootCode.PYTHON_TOO_OLD, BootCode.NO_FOLDER})
HINTS = {
    Code.DISK_FULL: "free some space on the machine, or set `folder` in its inventory entry to a larger disk",
    Code.READ_ONLY: "set `folder` in the machine's inventory entry to a place this user may write",
    BootCode.PYTHON_TOO_OLD: "install Python >= 3.8 on the machine, or set `python` in its inventory entry",
    BootCode.NO_FOLDER: "set `folder` in the machine's inventory entry to a place this user may write",
}


class _Error(Failure, total=False):
    path: str


class _Refused(TypedDict):
    """The line of a refusal; `path` comes with `agent-missing`."""

    error: _Error


def is_missing(answer: Mapping[str, object]) -> bool:
    return "error" in answer and decoded(_Refused, answer, "boot")["error"]["code"] == BootCode.AGENT_MISSING


def missing_path(answer: Mapping[str, object]) -> str:
    """Where the machine looked for its agent."""
    path = decoded(_Refused, answer, "boot")["error"].get("path", "")
    if not path.endswith(f"/agent/{agent_package().name}"):
        raise refuse("boot", f"it asks for its program at {path!r}")
    return path


def no_python(said: str) -> MachineUnfit:
    return MachineUnfit(
        f"the machine cannot run its Python: {said or 'command not found'}",
        hint="install Python >= 3.8 on the machine (apt install python3), or set `python` in its inventory entry",
    )


def accepted(verb: str, answer: dict[str, object]) -> dict[str, object]:
    if "error" not in answer:
        return answer
    error = decoded(_Refused, answer, verb)["error"]
    code, message = error["code"], error["message"]
    hint = error["hint"] or HINTS.get(code, "")
    if code in UNFIT:
        raise MachineUnfit(f"agent {verb}: {message}", hint)
    raise AgentError(f"agent {verb}: {message}", hint, code=code)
