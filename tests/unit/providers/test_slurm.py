"""What Slurm's commands print, and the script that is submitted: by the text, without a Slurm."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.toml_tables import build
from orchestrator.core.engine import JobOrder, JobView, Phase, Span
from orchestrator.core.errors import MachineUnfit, NoAnswer, UserError
from orchestrator.core.ports import Result, Shell
from orchestrator.providers.slurm import answers, script
from orchestrator.providers.slurm.engine import BEGINS, Slurm

ORDER = JobOrder("tiny-1130-abcdef", "/shared/me", "/shared/me/agent/a.pyz", "/py", "/src", ranks=8, gpus=8, nodes=2)


def host(**slurm: object) -> HostSpec:
    return build(HostSpec, {"name": "c", "provider": "slurm", "machine": "8xH100", "slurm": slurm}, "test")


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("PENDING", Phase.WAITING), ("REQUEUED", Phase.WAITING), ("REQUEUE_HOLD", Phase.WAITING),
        ("CONFIGURING", Phase.RUNNING), ("RUNNING", Phase.RUNNING), ("COMPLETING", Phase.RUNNING),
        ("SUSPENDED", Phase.RUNNING), ("COMPLETED", Phase.ENDED), ("CANCELLED by 1000", Phase.ENDED),
        ("CANCELLED+", Phase.ENDED), ("NODE_FAIL", Phase.ENDED), ("OUT_OF_MEMORY", Phase.ENDED),
    ],
)  # fmt: skip
def test_every_state_has_a_phase(state: str, phase: Phase) -> None:
    assert answers.phase(state) is phase


def test_a_line_of_squeue_says_why_it_waits_and_when_it_starts() -> None:
    assert answers.view("17|PENDING|Resources|1764500000|") == JobView(
        "17", Phase.WAITING, "PENDING", "Resources", 1764500000.0
    )
    assert answers.view("17|RUNNING|None|1764500000|n[1-2]").nodes == "n[1-2]"
    assert answers.view("17|PENDING|Priority|N/A|").starts_at is None
    held = answers.view("17|PENDING|JobHeldUser|N/A|")
    assert answers.words(held) == "JobHeldUser: it is held; `scontrol release 17` on the login node lets it go"


@pytest.mark.parametrize("line", ["17", "17|", "", "17|RUNN", "17|WARMING_UP|None|1|n1", "\x1b[2J|\x00"])
def test_a_torn_line_and_an_unknown_word_end_nothing(line: str) -> None:
    """The run would get an outcome, and its folder a record, while the job trains on."""
    with pytest.raises(NoAnswer):
        answers.view(line)


def test_no_number_that_slurm_prints_can_hurt() -> None:
    for huge in ("9" * 400, "\u00b2", "-1", "1e9", "nan"):
        seen = answers.view(f"17|PENDING|{'x' * 9000}|{huge}|n")
        assert seen.starts_at is None and len(seen.reason) <= 200
        assert answers.span(f"17|COMPLETED|{huge}|{huge}|gres/gpu={'9' * 5000}|1|None") == Span("COMPLETED", 0.0, 0, 0)
        assert engine(squeue=(0, f"{huge}\n7\n", ""), sacct=(1, "", "")).find("gptctl-r")[0] in ("7", "1")
        assert engine(sbatch=(0, "", f"Job 5 to start at {huge} using 1")).test(ORDER)


def test_the_books_count_every_start_and_all_nodes() -> None:
    lines = ["17|REQUEUED|60|2|billing=4,cpu=4,gres/gpu:h100=4,gres/gpu=4,node=2|1|None",
             "17|COMPLETED|96|2|billing=4,cpu=4,gres/gpu:h100=4,gres/gpu=4,node=2|2|None",
             "17|PENDING|0|2||Unknown|None"]  # fmt: skip
    spans = [answers.span(line) for line in lines]
    assert spans[0] == Span("REQUEUED", 60.0, 2, 4)
    assert [each.is_over for each in spans] == [True, True, False]
    assert sum(each.gpu_hours for each in spans) == pytest.approx(156 * 4 / 3600)
    assert sum(each.node_hours for each in spans) == pytest.approx(156 * 2 / 3600)
    assert answers.from_books("17|CANCELLED by 1000|5|1||1|None").reason == "by 1000"


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [
        ("billing=4,gres/gpu:a100=12,gres/gpu:h100=4,node=2", 16), ("gres/gpu=8,gres/gpu:a100=8", 8), ("cpu=64", 0),
        ("gres/gpu:3g.20gb=2", 2), ("gres/gpumem=80", 0),
    ],
)  # fmt: skip
def test_cards_that_a_site_tracks_by_their_type_alone_are_summed(tres: str, gpus: int) -> None:
    assert answers.span(f"17|COMPLETED|3600|2|{tres}|1|None").gpus == gpus


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 5400), ("1:30", 90), ("4:00:00", 14_400), ("2-0", 172_800), ("1-12:30", 131_400)]
)
def test_times_are_read_as_sbatch_reads_them(given: str, seconds: float) -> None:
    assert script.seconds(given) == seconds


def test_the_script_is_short_and_says_everything() -> None:
    made = script.text(ORDER, host(partition="gpu", account="lab", qos="high", time="4:00:00", setup=["module load x"]))
    lines = made.splitlines()
    assert lines[0] == "#!/bin/bash -l" and len(lines) <= 30 and max(map(len, lines)) < 130
    assert "#SBATCH --job-name=gptctl-tiny-1130-abcdef --comment=gptctl:run=tiny-1130-abcdef" in lines
    assert "#SBATCH --partition=gpu --account=lab --qos=high" in lines
    assert "#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=32" in lines
    assert "--gpus-per-node=8" in made and "module load x" in lines
    for word in ("srun", "torch.distributed.run", "--requeue", "--signal=B:USR1@120", "--open-mode=append"):
        assert word in made
    assert "--signals-to-handle=SIGINT" in made, "SIGTERM reaches torchrun too, which would end its ranks unsaved"
    assert max(number for number, line in enumerate(lines) if line.startswith("#SBATCH")) < lines.index("module load x")


def test_the_sites_modules_come_first_in_a_login_shell_and_bring_their_python() -> None:
    """`module` is a function that only login shells know."""
    site = host(modules=["cuda/12.8", "pytorch/2.9"], setup=["export X=1"])
    for made in (script.text(ORDER, site), script.trial(ORDER, site), script.interpreter(site) or ""):
        lines = made.splitlines()
        (loads,) = (line for line in lines if line.startswith("module load"))
        assert lines[0] == "#!/bin/bash -l" and loads.startswith("module load cuda/12.8 pytorch/2.9")
    assert (script.interpreter(site) or "").endswith('exec python3 "$@"\n')
    assert script.interpreter(host(setup=["export X=1"])) is None
    assert script.interpreter(site.model_copy(update={"python": "/opt/python"})) is None
    assert script.text(ORDER, host()).splitlines()[0] == "#!/bin/bash"


def test_one_rank_needs_no_torchrun() -> None:
    made = script.text(JobOrder("r", "/s", "/a", "/p", "/src", ranks=1), host(gres="gpu:h100:1"))
    assert "torch.distributed" not in made and "-m trainer" in made and "--gres=gpu:h100:1" in made


@pytest.mark.parametrize(
    ("given", "longest_s", "made"),
    [(None, None, None), ("60", None, "60"), ("60", 90.0, "2"), ("60", 7200.0, "60"), (None, 61.0, "2")],
)
def test_the_limits_of_the_run_shorten_the_job(given: str | None, longest_s: float | None, made: str | None) -> None:
    order = JobOrder("r", "/s", "/a", "/p", "/src", ranks=1, longest_s=longest_s)
    text = script.text(order, host(**({"time": given} if given else {})))
    assert (f"--time={made}" in text) if made else ("--time" not in text)


@pytest.mark.parametrize("module", ["a b", "$(reboot)", "x;y", "-h", "a\nb", "'", "/x"])
def test_no_module_is_more_than_a_name(module: str) -> None:
    with pytest.raises(UserError):
        host(modules=[module])


@pytest.mark.parametrize("value", ["a b", "$(reboot)", "x;y", "-h", "a\nb", "'"])
@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "gres"])
def test_nothing_in_the_inventory_becomes_a_command(key: str, value: str) -> None:
    with pytest.raises(UserError):
        host(**{key: value})


def test_only_slurm_has_a_queue() -> None:
    with pytest.raises(UserError, match="no queue"):
        build(HostSpec, {"name": "c", "machine": "1x3090", "slurm": {"partition": "x"}}, "test")


class Answers:
    """A shell whose commands print what the test says, by the program's name."""

    def __init__(self, said: Mapping[str, tuple[int, str, str]]) -> None:
        self.said, self.argv = said, cast(list[Sequence[str]], [])

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", deadline_s: float = 30.0) -> Result:
        words = list(argv)[list(argv).index("env") + 2 :]
        self.argv.append(words)
        code, out, err = self.said[words[0]]
        greeting = f"Welcome! 2 nodes are down\n{BEGINS}\n"
        return Result(tuple(argv), code, (greeting + out).encode(), (greeting + err).encode())


def engine(**said: Any) -> Slurm:
    return Slurm(host(partition="gpux"), cast(Shell, Answers(said)))


def test_a_refusal_is_slurms_own_line_with_the_names_that_there_are() -> None:
    said = "sbatch: error: invalid partition specified: gpux\nsbatch: error: Batch job submission failed: Invalid"
    with pytest.raises(UserError) as refused:
        engine(sbatch=(1, "", said), sinfo=(0, "spot\nurgent\n", "")).submit("/job.sh")
    assert "invalid partition specified: gpux" in refused.value.message
    assert "known: spot, urgent" in refused.value.message and refused.value.exit_code == 2
    assert "gptctl check c" in refused.value.hint


@pytest.mark.parametrize("words", ["Unable to contact slurm controller (connect failure)", "Socket timed out on send"])
def test_a_silent_controller_decides_nothing(words: str) -> None:
    silent = (1, "", f"slurm_load_jobs error: {words}")
    for call in (lambda: engine(squeue=silent).look("17"), lambda: engine(sbatch=silent).submit("/job.sh")):
        with pytest.raises(NoAnswer):
            call()


def test_a_release_that_is_refused_ends_no_run() -> None:
    """The job waits, and resume asks for its release again."""
    engine(scontrol=(1, "", "Job is no longer pending execution")).let_go("17_0")
    with pytest.raises(NoAnswer, match="Access/permission denied") as refused:
        engine(scontrol=(1, "", "Access/permission denied")).let_go("17_0")
    assert refused.value.hint == "gptctl resume tries it again"


def test_a_job_that_the_queue_forgot_is_in_the_books_or_nowhere() -> None:
    forgotten = (1, "", "slurm_load_jobs error: Invalid job id specified")
    found = engine(squeue=forgotten, sacct=(0, "17|CANCELLED by 1000|5|1|cpu=1|1|None\n", "")).look("17")
    assert found is not None and found.phase is Phase.ENDED and found.reason == "by 1000"
    off = (1, "", "Slurm accounting storage is disabled")
    assert engine(squeue=forgotten, sacct=off).look("17") is None
    assert engine(sacct=off).usage(["17"]) is None


def test_a_job_is_found_by_its_name_in_queue_and_books() -> None:
    assert engine(squeue=(0, "19\n", ""), sacct=(0, "7\n19\n", "")).find("gptctl-r") == ["7", "19"]
    assert engine(squeue=(0, "", ""), sacct=(1, "", "Slurm accounting storage is disabled")).find("gptctl-r") == []


@pytest.mark.parametrize(("age_days", "since"), [(0.1, "now-2days"), (29.5, "now-31days"), (399.9, "now-401days")])
def test_the_books_are_read_back_to_the_runs_beginning(age_days: float, since: str) -> None:
    """An older run would be lost, and a number that Slurm gave twice billed twice."""
    shell = Answers({"squeue": (1, "", "Invalid job id specified"), "sacct": (0, "17|TIMEOUT|5|1|cpu=1|1|None\n", "")})
    slurm = Slurm(host(), cast(Shell, shell), since=time.time() - age_days * 86_400)
    found, spans = slurm.look("17"), slurm.usage(["17"])
    assert found is not None and found.state == "TIMEOUT" and spans
    shell.said = {**shell.said, "squeue": (0, "", "")}
    slurm.find("gptctl-r")
    asked = [argv for argv in shell.argv if argv[0] == "sacct"]
    assert len(asked) == 3 and all(argv[argv.index("-S") + 1] == since for argv in asked)


def test_a_machine_without_slurm_is_named() -> None:
    with pytest.raises(MachineUnfit, match="sbatch is not there"):
        engine(sbatch=(127, "", "exec: sbatch: not found")).submit("/job.sh")


def test_the_answer_of_sbatch_is_a_number() -> None:
    assert engine(sbatch=(0, "17;cluster\n", "")).submit("/job.sh") == "17"
    for lie in ("", "Submitted", "17 18", "\u00b2", "9" * 40):  # it may have queued the job all the same
        with pytest.raises(NoAnswer, match="names no job"):
            engine(sbatch=(0, lie, "")).submit("/job.sh")


def test_the_day_and_hour_that_slurm_expects_is_readable() -> None:
    said = "sbatch: Job 5 to start at 1764500000 using 1 processors on nodes n1 in partition spot"
    assert engine(sbatch=(0, "", said)).test(ORDER).startswith("would start at 2025-11-30")


def test_a_trial_has_the_same_demands_and_no_signal() -> None:
    made = script.trial(ORDER, host(partition="gpu"))
    assert "--partition=gpu" in made and "--signal" not in made and "--requeue" not in made


def test_the_warning_leaves_a_short_job_time_to_train() -> None:
    order = JobOrder("r", "/s", "/a", "/p", "/src", ranks=1, longest_s=120.0)
    assert "--signal=B:USR1@60 " in script.text(order, host())


def test_a_sweep_is_one_job_whose_elements_each_wait_for_their_run() -> None:
    order = JobOrder("sweep-small", "/s", "/a", "/p", "/src", ranks=1, arms=("r-a", "r-b", "r-c"))
    made = script.text(order, host())
    assert "#SBATCH --array=0-2 --hold" in made.splitlines() and "ARMS=(r-a r-b r-c)" in made.splitlines()
    assert "RUN=${ARMS[$SLURM_ARRAY_TASK_ID]}" in made.splitlines() and len(made.splitlines()) <= 30
    assert "--array" not in script.text(ORDER, host())


def test_the_elements_of_a_sweep_are_found_as_one_job() -> None:
    said = {"squeue": (0, "17\n17\n", ""), "sacct": (0, "17_0\n17_[1-2]\n12\n", "")}
    assert engine(**said).find("gptctl-sweep") == ["12", "17"]


def test_books_that_are_silent_are_not_called_off() -> None:
    """The bill would be the job's own notes for ever."""
    down = "sacct: error: Sending PersistInit msg: Connection refused\nsacct: error: Problem talking to the database"
    with pytest.raises(NoAnswer):
        engine(sacct=(1, "", down)).usage(["17"])
    with pytest.raises(NoAnswer):
        engine(sacct=(1, "", "sacct: error: slurmdbd: DBD_SEND_MULT_JOB_START failure")).usage(["17"])
    ended = engine(squeue=(0, "17|FAILED|NonZeroExitCode|1|n1\n", ""), sacct=(1, "", down)).look("17")
    assert ended is not None and ended.phase is Phase.ENDED, "who cancelled it is asked for, not needed"


def test_what_the_queue_has_forgotten_has_ended_whatever_the_books_say() -> None:
    forgotten = (1, "", "slurm_load_jobs error: Invalid job id specified")
    found = engine(squeue=forgotten, sacct=(0, "17|RUNNING|5|1|cpu=1|1|None\n", "")).look("17")
    assert found is not None and found.phase is Phase.ENDED


def test_a_refusal_survives_that_the_names_cannot_be_listed() -> None:
    refused = (1, "", "sbatch: error: Invalid account or account/partition combination specified")
    for listing in ((127, "", "sacctmgr: not found"), (1, "", "Connection refused")):
        with pytest.raises(UserError, match="Invalid account"):
            engine(sbatch=refused, sacctmgr=listing, sinfo=listing).submit("/job.sh")


@pytest.mark.parametrize("time", ["0", "00:00", "0-0", "0:00:00", "UNLIMITED", "-1", "4h", "\u0664"])
def test_no_time_of_the_inventory_means_for_ever(time: str) -> None:
    """To sbatch, 0 is no limit at all: the limits of the run would not hold."""
    with pytest.raises(UserError, match="time"):
        host(time=time)


def test_an_interface_is_one_word_of_the_shell() -> None:
    made = script.text(ORDER, host(interface="ib0&reboot"))
    assert "export GLOO_SOCKET_IFNAME='ib0&reboot' NCCL_SOCKET_IFNAME='ib0&reboot'" in made.splitlines()
