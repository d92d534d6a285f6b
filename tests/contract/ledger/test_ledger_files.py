"""The ledger's file: damage, full and read-only disks, modes, folders of others, and processes that die or race."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.errors import LedgerDamaged, UserError
from orchestrator.core.states import State
from orchestrator.ledger import Evaluation, Ledger, RunRecord, database
from orchestrator.ledger.database import FILE

PREAMBLE = """
import os, sys, time
from pathlib import Path
from orchestrator.core.errors import GptctlError
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import Ledger, RunLock, RunRecord
home = Path(sys.argv[1])
"""


def program(body: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A real process that runs `body` with the ledger imported."""
    argv = [*prefix, sys.executable, "-c", PREAMBLE + textwrap.dedent(body), *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def digests(home: Path) -> dict[str, str]:
    """Of everything that holds data; the -shm is scratch that SQLite may rebuild."""
    files = [path for path in home.iterdir() if path.is_file() and not path.name.endswith("-shm")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.stat().st_size}


def make(home: Path, runs: int = 40) -> Path:
    with Ledger.open(home, time.time) as ledger:
        for number in range(runs):
            ledger.add_run(RunRecord(f"run-{number}", "quickstart", "local", "2xCPU", number, note="x" * 500))
    return home / FILE


def truncate_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(b"\xa5" * (path.stat().st_size // 2))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "zero bytes": lambda path: os.truncate(path, 0),
    "truncated in the header": lambda path: os.truncate(path, 57),
    "truncated by half": truncate_half,
    "truncated by one byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "garbage": lambda path: path.write_bytes(random.Random(1).randbytes(50_000)),
    "garbage in the middle": overwrite_middle,
    "text": lambda path: path.write_text("not a database\n" * 100),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_refused_untouched_and_the_hint_works(tmp_path: Path, damage: str) -> None:
    home = tmp_path / "my home"
    path = make(home)
    DAMAGES[damage](path)
    before = digests(home)
    with pytest.raises(LedgerDamaged) as refused:
        Ledger.open(home, time.time)
    assert digests(home) == before
    assert str(path) in refused.value.message and str(home / "runs") in refused.value.message
    assert refused.value.exit_code == 2
    command = refused.value.hint.split("start a new ledger: ")[1].split("   (")[0]
    subprocess.run(["bash", "-c", command], check=True)
    with Ledger.open(home, time.time) as ledger:
        assert ledger.runs() == []


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    path = make(tmp_path / "home")
    os.truncate(path, 0)
    with pytest.raises(LedgerDamaged, match="is empty"):
        Ledger.open(path.parent, time.time)


def test_of_two_creators_the_first_wins(tmp_path: Path) -> None:
    """What the second one does that had found no file either."""
    path = make(tmp_path / "home")
    before = digests(path.parent)
    database._create(path)
    assert digests(path.parent) == before


def test_damage_beside_a_hot_wal_leaves_both_files_as_they_are(tmp_path: Path) -> None:
    path = make(tmp_path / "home")
    body = "ledger = Ledger.open(home, time.time)\nledger.update_run('run-1', step=7)\nos.kill(os.getpid(), 9)"
    program(body, path.parent).wait(timeout=240)
    wal = path.with_name(f"{FILE}-wal")
    assert wal.stat().st_size > 0, "the kill left a write-ahead log"
    path.write_bytes(random.Random(2).randbytes(path.stat().st_size))
    before = digests(path.parent)
    with pytest.raises(LedgerDamaged):
        Ledger.open(path.parent, time.time)
    assert digests(path.parent) == before
    path.unlink()
    with pytest.raises(LedgerDamaged, match=r"missing, but its ledger\.db-wal is there"):
        Ledger.open(path.parent, time.time)


def test_damage_that_appears_while_open_is_named_too(tmp_path: Path) -> None:
    path = make(tmp_path / "home", runs=200)
    with Ledger.open(path.parent, time.time) as ledger:
        overwrite_middle(path)
        with pytest.raises(LedgerDamaged, match=r"ledger\.db is damaged"):
            ledger.runs()


def test_files_that_are_no_ledger_of_ours(tmp_path: Path) -> None:
    stranger = tmp_path / "a" / FILE
    stranger.parent.mkdir()
    with sqlite3.connect(stranger) as connection:
        connection.execute("CREATE TABLE recipes (cake TEXT)")
    connection.close()
    (tmp_path / "b" / FILE).mkdir(parents=True)
    for home, reason in (("a", "without gptctl's tables"), ("b", "not a regular file")):
        with pytest.raises(LedgerDamaged, match=reason):
            Ledger.open(tmp_path / home, time.time)


def test_a_ledger_of_a_newer_gptctl_says_upgrade(tmp_path: Path) -> None:
    path = make(tmp_path / "home", runs=1)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="newer gptctl") as refused:
        Ledger.open(path.parent, time.time)
    assert "upgrade" in refused.value.hint


def test_a_ledger_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = make(tmp_path / "home", runs=2)
    with sqlite3.connect(path) as connection:
        for table in ("evaluations", "sweeps"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with Ledger.open(path.parent, time.time) as ledger:
        run_id = ledger.runs()[0].id
        for loss in (3.5, 3.4):
            ledger.add_evaluation(Evaluation(run_id, 40, "slice", "0+9", 1.0, loss, {"tokens": 9}))
    with Ledger.open(path.parent, time.time) as ledger:
        assert ledger.evaluations(run_id) == [Evaluation(run_id, 40, "slice", "0+9", 1.0, 3.4, {"tokens": 9})]
        assert len(ledger.runs()) == 2 and ledger.evaluations() == ledger.evaluations(run_id)


def test_a_ledger_of_the_fourth_version_keeps_its_measurements_and_takes_a_judges(tmp_path: Path) -> None:
    path = make(tmp_path / "home", runs=1)
    slice_ = Evaluation("", 40, "slice", "0+9", 1.0, 3.5, {"tokens": 9})
    with Ledger.open(path.parent, time.time) as ledger:
        slice_ = dataclasses.replace(slice_, run_id=ledger.runs()[0].id)
        ledger.add_evaluation(slice_)
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "ALTER TABLE evaluations RENAME TO new; CREATE TABLE evaluations AS SELECT * FROM new; DROP TABLE new"
        )
        connection.execute("PRAGMA user_version = 4")
    connection.close()
    score = dataclasses.replace(slice_, kind="judge", name="ab", loss=None)
    with Ledger.open(path.parent, time.time) as ledger:
        ledger.add_evaluation(score)
        assert ledger.evaluations() == [score, slice_]


def test_modes_are_private_whatever_the_umask(tmp_path: Path) -> None:
    body = """
    os.umask(0)
    with Ledger.open(home, time.time) as ledger, RunLock.acquire(home, "run-1"):
        ledger.add_run(RunRecord("run-1", "quickstart", "local", "2xCPU", 1.0))
        for path in sorted([home, *home.rglob("*")]):
            print(oct(path.stat().st_mode & 0o777), path.name)
    """
    modes = output(program(body, tmp_path / "home")).splitlines()
    assert modes == [
        "0o700 home", "0o600 ledger.db", "0o600 ledger.db-shm", "0o600 ledger.db-wal", "0o700 locks",
        "0o600 run-1.lock",
    ]  # fmt: skip


def test_an_open_home_is_closed_and_a_foreign_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = tmp_path / "wide"
    wide.mkdir(mode=0o755)
    Ledger.open(wide, time.time).close()
    assert wide.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(wide)
    with pytest.raises(UserError, match="symbolic link"):
        Ledger.open(tmp_path / "link", time.time)
    sticky = tmp_path / "tmp"
    sticky.mkdir()
    sticky.chmod(0o1777)
    monkeypatch.setenv("HOME", str(tmp_path))
    for shared in (sticky, tmp_path):
        mode = shared.stat().st_mode
        with pytest.raises(UserError, match="used for other things"):
            Ledger.open(shared, time.time)
        assert shared.stat().st_mode == mode
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="File exists"):
        Ledger.open(tmp_path / "file", time.time)


def test_a_home_of_another_user_is_refused(tmp_path: Path) -> None:
    home = Path("/usr")  # root's, and this user is not
    if os.geteuid() == 0:
        home = tmp_path / "theirs"
        home.mkdir()
        os.chown(home, 4711, 4711)
    before = home.stat()
    with pytest.raises(UserError, match=f"belongs to user id {before.st_uid}, not to you") as refused:
        Ledger.open(home, time.time)
    assert "GPTCTL_HOME" in refused.value.hint
    assert home.stat() == before


def in_small_disk(body: str, home: Path, mount: str) -> str:
    """Runs `body` where `home` is a mount of its own, in a private mount namespace."""
    home.mkdir()
    namespace = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--mount")
    script = f'{mount} && exec "$@"'
    return output(program(body, home, prefix=(*namespace, "sh", "-c", script, "sh")))


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    body = """
    ledger = Ledger.open(home, time.time)
    written = 0
    try:
        while written < 10_000:
            ledger.add_run(RunRecord(f"run-{written}", "quickstart", "local", "2xCPU", 1.0, note="x" * 4000))
            written += 1
    except GptctlError as error:
        print(error.exit_code, error.message, "|", error.hint)
    ledger.close()
    print(sorted(path.name for path in home.iterdir()))
    with Ledger.open(home, time.time) as again:
        print(written > 10 and len(again.runs()) == written)
    """
    answer = in_small_disk(body, home, f"mount -t tmpfs -o size=1m,mode=0700 tmpfs '{home}'")
    assert answer.startswith("2 the ledger") and "full" in answer and "free some space" in answer
    assert answer.endswith("True\n"), answer


def test_a_disk_too_small_for_a_new_ledger_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    body = """
    try:
        Ledger.open(home, time.time)
    except GptctlError as error:
        print(error.exit_code, error.message, [path.name for path in home.iterdir()])
    """
    answer = in_small_disk(body, home, f"mount -t tmpfs -o size=16k,mode=0700 tmpfs '{home}'")
    assert answer.startswith("2 the ledger") and answer.endswith("[]\n"), answer


def test_a_read_only_home_is_said(tmp_path: Path) -> None:
    home = tmp_path / "home"
    body = """
    try:
        Ledger.open(home, time.time)
    except GptctlError as error:
        print(error.exit_code, error.message, "|", error.hint)
    """
    answer = in_small_disk(body, home, f"mount -t tmpfs -o ro,mode=0700 tmpfs '{home}'")
    assert answer.startswith("2 ") and "ead-only" in answer and "GPTCTL_HOME" in answer


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    body = """
    with Ledger.open(home, time.time) as ledger:  # the first of them creates it, too
        for number in range(25):
            run_id = f"run-{sys.argv[2]}-{number}"
            ledger.add_run(RunRecord(run_id, "quickstart", "local", "2xCPU", 1.0))
            ledger.set_state(run_id, State.TRAINING)
    """
    processes = [program(body, tmp_path / "home", number) for number in range(4)]
    for process in processes:
        output(process)
    with Ledger.open(tmp_path / "home", time.time) as ledger:
        runs = ledger.runs()
        assert len(runs) == 100 and {run.state for run in runs} == {State.TRAINING}
        assert all(len(ledger.events(run.id)) == 1 for run in runs)
    assert [path.name for path in (tmp_path / "home").iterdir()] == [FILE], "no temporary file stays"


def test_sigkill_at_any_moment_leaves_whole_transactions(tmp_path: Path) -> None:
    body = """
    with Ledger.open(home, time.time) as ledger:
        print("open", flush=True)
        for number in range(100_000):
            run_id = f"run-{os.getpid()}-{number}"
            ledger.add_run(RunRecord(run_id, "quickstart", "local", "2xCPU", time.time()))
            for state in (State.ACQUIRING, State.PREPARING, State.TRAINING):
                ledger.set_state(run_id, state)
            ledger.set_state(run_id, State.ENDED, outcome=Outcome.FINISHED)
            print(number, flush=True)
    """
    rng = random.Random(7)
    for _ in range(6):
        process = program(body, tmp_path / "home")
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        for _ in range(rng.randint(1, 4)):
            process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=240)
        with Ledger.open(tmp_path / "home", time.time) as ledger:
            for run in ledger.runs():
                told = [event.data["to"] for event in ledger.events(run.id)]
                assert (told[-1] if told else "planned") == run.state, "state and event are one transaction"
    with Ledger.open(tmp_path / "home", time.time) as ledger:
        assert len(ledger.runs(limit=20)) > 5


def test_sigkill_while_the_ledger_is_created_never_leaves_an_unsound_one(tmp_path: Path) -> None:
    rng = random.Random(11)
    for attempt in range(8):
        process = program("print('up', flush=True)\nLedger.open(home, time.time)", tmp_path / str(attempt))
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        time.sleep(rng.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=240)
        with Ledger.open(tmp_path / str(attempt), time.time) as ledger:
            assert ledger.runs() == []


def test_what_is_written_beside_readers_that_come_and_go_is_there(tmp_path: Path) -> None:
    """Two connections in one process, as `gptctl run` has them: the second's opening must not cost the first its
    locks, or the last reader to leave takes the log away under both."""
    home = tmp_path / "home"
    look = "print(len(list(Ledger.open(home, time.time).runs())))"
    make(home, 1)
    with Ledger.open(home, time.time) as ledger, Ledger.open(home, time.time) as second:
        assert output(program("with Ledger.open(home, time.time): pass", home)) == ""
        run = ledger.runs()[0]
        second.update_run(run.id, step=7)
        assert output(program(look, home)).strip() == "1"
        assert output(program("print(Ledger.open(home, time.time).runs()[0].step)", home)).strip() == "7"


def test_a_torn_last_page_stays_refused_however_often_it_is_opened(tmp_path: Path) -> None:
    """The refused look leaves an empty -wal behind, which must not pass for a log that mends the page."""
    path = make(tmp_path / "home")
    os.truncate(path, path.stat().st_size - 100)
    for _ in range(4):
        with pytest.raises(LedgerDamaged, match="within a page"):
            Ledger.open(path.parent, time.time)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.2)


def test_a_locked_ledger_names_the_process_that_holds_it(tmp_path: Path, impatient: None) -> None:
    path = make(tmp_path / "home", 1)
    body = "connection = __import__('sqlite3').connect(sys.argv[1], isolation_level=None)\n"
    body += "connection.execute('BEGIN IMMEDIATE')\nprint('held', flush=True)\ntime.sleep(60)"
    holder = program(body, path)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with Ledger.open(path.parent, time.time) as ledger, pytest.raises(UserError, match=str(holder.pid)) as raised:
            ledger.update_run("run-0", note="y")
        assert f"ps -fp {holder.pid}" in raised.value.hint
    finally:
        holder.kill()
        holder.communicate()


NO_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
static int answer(const char *name, int fd, int command, void *argument) {
    if (command == F_SETLK || command == F_SETLKW || command == F_SETLK64 || command == F_SETLKW64) {
        errno = ENOLCK;
        return -1;
    }
    return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, name))(fd, command, argument);
}
#define WRAP(name) int name(int fd, int command, ...) { \\
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest); \\
    return answer(#name, fd, command, argument); }
WRAP(fcntl)
WRAP(fcntl64)
"""


def test_a_file_system_without_locks_is_named_as_the_cause(tmp_path: Path) -> None:
    source, library = tmp_path / "nolocks.c", tmp_path / "nolocks.so"
    source.write_text(NO_LOCKS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    body = """
    from orchestrator.ledger import database
    database.BUSY_TIMEOUT_S = 0.2
    try:
        Ledger.open(home, time.time)
    except GptctlError as error:
        print(error.message, "|", error.hint)
    """
    said = output(program(body, tmp_path / "home", prefix=("env", f"LD_PRELOAD={library}")))
    assert "this file system does not lock files (No locks available)" in said
    assert "set GPTCTL_HOME to a folder on a local disk" in said
