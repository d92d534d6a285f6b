"""A folder that plays a machine for the agent: the real program, real processes, and small programs as training.

The fake torchrun and trainer keep the contract (ranks in sessions of their own, metrics, stop, exit.json) and take
milliseconds where the real ones take seconds; stories run the real ones.

    box = Box(tmp_path)
    box.start(run="r-1", steps=20)
    assert box.wait("r-1")["outcome"] == "finished"
"""

from __future__ import annotations

import atexit
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.agent.system import processes
from orchestrator.remote.agent_client.package import agent_package
from tests.support.clock.waiting import DEADLINE_S, until
from tests.support.machines import programs

AGENT_PYTHON = os.environ.get("GPTCTL_TEST_AGENT_PYTHON", sys.executable)

TORCHRUN = """
import os, subprocess, sys
count = int(next(word for word in sys.argv if word.startswith("--nproc-per-node")).split("=")[1])
program = sys.argv[sys.argv.index("-m") + 1 :]
ranks = [
    subprocess.Popen([sys.executable, "-m", *program], env={**os.environ, "LOCAL_RANK": rank}, start_new_session=True)
    for rank in map(str, range(count))
]
sys.exit(1 if any([rank.wait() for rank in ranks]) else 0)
"""

TRAINER = """
import faulthandler, json, os, signal, sys, time
folder, rank = sys.argv[1], int(os.environ["LOCAL_RANK"])
config = json.load(open(folder + "/config.json"))
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
faulthandler.register(signal.SIGUSR1)
print("rank", rank, "of", os.path.basename(folder), flush=True)
step, steps = 0, config["steps"]
while step < steps and not (asked or os.path.exists(folder + "/stop")):
    time.sleep(config.get("step_s", 0.02))
    step += 1
    if step == config.get("fail_at"):
        sys.exit("rank %d: out of memory" % rank)
    if rank == 0:
        with open(folder + "/metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "loss": config.get("loss", 1.0 / step)}) + "\\n")
if rank == 0:
    outcome = {"outcome": "finished" if step == steps else "stopped", "step": step, "signals": asked}
    with open(folder + "/exit.json", "w") as file:
        json.dump(outcome, file)
"""


class Box:
    """One machine's ROOT, with the agent already there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.programs = folder / "programs"
        program = self.root / "agent" / agent_package().name
        program.parent.mkdir(parents=True)
        program.write_bytes(agent_package().content)
        self.program = program.with_name(f"{program.stem}-{processes.boot_id()[:8]}")
        shutil.copytree(_unpacked(), self.program)
        for name, text in {"torch/distributed/run.py": TORCHRUN, "trainer/__main__.py": TRAINER}.items():
            path = self.programs / name
            path.parent.mkdir(parents=True)
            path.write_text(text)
        for name in ("torch", "torch/distributed", "trainer"):
            (self.programs / name / "__init__.py").touch()

    def argv(self, verb: str) -> list[str]:
        return [AGENT_PYTHON, "-I", "-S", str(self.program), verb]

    def lines(self, verb: str, **request: Any) -> list[dict[str, Any]]:
        """Every line a verb answers."""
        done = programs.run_agent(self.argv(verb), _unpacked(), json.dumps(request).encode(), DEADLINE_S)
        assert done.stdout, done.stderr.decode()
        answers: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == (1 if "error" in answers[-1] else 0)
        return answers

    def call(self, verb: str, **request: Any) -> dict[str, Any]:
        """The last line a verb answers."""
        return self.lines(verb, **request)[-1]

    def background(self, verb: str, **request: Any) -> subprocess.Popen[bytes]:
        """A verb that runs while the test goes on; its request is already sent."""
        process = subprocess.Popen(
            self.argv(verb), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def train_request(self, run: str, digest: str = "d", **config: Any) -> dict[str, Any]:
        """A start request for the fake training; `spec_` keywords go into the spec, the others into config.json."""
        spec = {"python": sys.executable, "pythonpath": str(self.programs), "ranks": 2, "gpus": [], "grace_s": 20}
        spec.update({key[len("spec_") :]: config.pop(key) for key in list(config) if key.startswith("spec_")})
        spec["config"] = json.dumps({"steps": 10, **config})
        return {"job": "train", "run": run, "digest": digest, "spec": spec}

    def start(self, run: str = "r-1", digest: str = "d", **config: Any) -> dict[str, Any]:
        return self.call("start", **self.train_request(run, digest, **config))

    def program_request(self, text: str, job: str = "prepare", run: str = "r-1", digest: str = "d") -> dict[str, Any]:
        """A start request for a job that runs this Python text."""
        return {"job": job, "run": run, "digest": digest, "spec": {"argv": [sys.executable, "-c", text]}}

    def job(self, run: str = "r-1", job: str = "train") -> dict[str, Any]:
        """The entry of the newest job of that name in `status`."""
        return dict(self.call("status", run=run)["runs"][run]["jobs"][self.folder(run, job).name])

    def folder(self, run: str = "r-1", job: str = "train") -> Path:
        """The folder of the newest job of that name."""
        specs = [path for path in (self.root / "jobs" / run).glob("*/spec.json") if path.parent.name.startswith(job)]
        return max(specs, key=lambda path: path.stat().st_mtime_ns).parent

    def state(self, run: str = "r-1", job: str = "train") -> dict[str, Any]:
        return dict(json.loads((self.folder(run, job) / "state.json").read_text()))

    def starts(self, run: str = "r-1", job: str = "train") -> int:
        """How many processes were ever started for the job."""
        return len((self.folder(run, job) / "starts.jsonl").read_text().splitlines())

    def processes(self, run: str = "r-1", job: str = "train") -> list[int]:
        return processes.of_job(str(self.folder(run, job)))

    def ranks(self, run: str = "r-1") -> list[int]:
        return processes.ranks(str(self.folder(run)))

    def metrics(self, run: str = "r-1") -> list[dict[str, Any]]:
        path = self.root / "runs" / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait(self, run: str = "r-1", job: str = "train") -> dict[str, Any]:
        """The job's exit record, once it has ended."""
        exit_record = self.folder(run, job) / "exit.json"
        until(lambda: exit_record.exists() or self.job(run, job)["state"] == "ended")
        until(lambda: self.job(run, job)["state"] == "ended")
        return dict(json.loads(exit_record.read_text()))

    def until_steps(self, count: int, run: str = "r-1") -> None:
        until(lambda: len(self.metrics(run)) >= count)

    def until_ranks_listen(self, run: str = "r-1") -> None:
        """Until both ranks have made a handler for SIGTERM: before that they die of it, as any program."""
        log = self.root / "runs" / run / "train.log"
        until(lambda: log.exists() and log.read_text().count("rank ") >= 2)

    def kill_supervisor(self, run: str = "r-1", job: str = "train") -> None:
        """SIGKILL, and seen to be gone: for a moment after it a process still looks alive."""
        supervisor = self.state(run, job)["supervisor"]
        os.kill(supervisor["pid"], signal.SIGKILL)
        until(lambda: not processes.is_alive(supervisor))

    def kill_everything(self, run: str = "r-1", job: str = "train") -> None:
        """The supervisor, and then all that it would have reported: what a power cut leaves."""
        self.kill_supervisor(run, job)
        assert processes.kill_all(str(self.folder(run, job)))

    def end(self) -> None:
        """Kills what a test left running, supervisors first."""
        for state in self.root.glob("jobs/*/*/state.json"):
            supervisor = json.loads(state.read_text() or "{}").get("supervisor") if _whole(state) else None
            if supervisor and processes.is_alive(supervisor):
                os.kill(supervisor["pid"], signal.SIGKILL)
        for folder in self.root.glob("jobs/*/*"):
            processes.kill_all(str(folder))


@cache
def _unpacked() -> Path:
    """The agent as its first call in a boot leaves it beside the zipapp, with what Python has compiled."""
    folder = Path(tempfile.mkdtemp(prefix="gptctl-agent-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(agent_package().content)) as archive:
        archive.extractall(folder)
    subprocess.run([AGENT_PYTHON, "-I", "-m", "compileall", "-q", str(folder)], check=True)
    return folder


def _whole(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except ValueError:
        return False


def followed_bytes(answers: list[dict[str, Any]], file: str) -> bytes:
    """The bytes that `follow` sent of a file, checked to be without gap or overlap."""
    pieces = [answer for answer in answers if answer.get("kind") == "data" and answer["file"] == file]
    content = b""
    for piece in pieces:
        assert piece["offset"] == pieces[0]["offset"] + len(content)
        content += base64.b64decode(piece["data"])
    return content
