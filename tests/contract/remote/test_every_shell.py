"""What every Shell promises, asked of this machine and of a real sshd alike."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import CommandFailed, LinkLost, MachineUnfit, UserError
from orchestrator.core.ports import Shell
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.shell.ssh_shell import connect
from tests.support.clock.waiting import PATIENCE
from tests.support.machines.sshd import SMALL_DISK_BYTES, Sshd

NASTY = [
    "",
    "a b",
    "a;touch canary",
    "$(touch canary)",
    "`touch canary`",
    "'",
    '"',
    "'; touch canary #",
    "line\nbreak",
    "\\",
    "\\n",
    "*",
    "~",
    "$HOME",
    "!!",
    "-rf",
    "--",
    "#",
    "&& touch canary",
    "| touch canary",
    "ü€𝄞",
    "\t\r",
    "\x01\x1b[31m",
    "{a,b}",
    "%s%n",
    "a\\'b",
]
ECHO_ARGV = (
    "import sys; sys.stdout.buffer.write(b'\\0'.join(a.encode('utf8', 'surrogateescape') for a in sys.argv[1:]))"
)


@pytest.fixture(params=["local", "ssh"])
def any_shell(request: pytest.FixtureRequest, gptctl_home: Path, tmp_path: Path) -> Iterator[Shell]:
    """This machine, or an sshd reached as the CLI reaches it."""
    if request.param == "local":
        yield LocalShell()
        return
    with Sshd(tmp_path / "machines") as host:
        shell = connect(host.address(), known_hosts=gptctl_home / "known_hosts")
        yield shell
        shell.close()


def test_run_returns_code_stdout_and_stderr(any_shell: Shell) -> None:
    result = any_shell.run(["sh", "-c", "cat; echo bad >&2; exit 3"], stdin=b"\x00\xff binary")
    assert (result.code, result.stdout, result.stderr) == (3, b"\x00\xff binary", b"bad\n")


def test_argv_arrives_byte_for_byte_and_nothing_in_it_is_executed(any_shell: Shell) -> None:
    result = any_shell.run(["python3", "-c", ECHO_ARGV, *NASTY])
    assert [word.decode() for word in result.stdout.split(b"\0")] == NASTY
    assert any_shell.run(["ls", "-a"]).stdout.find(b"canary") == -1


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=5))
def test_any_words_arrive_as_they_are(any_shell: Shell, words: list[str]) -> None:
    result = any_shell.run(["sh", "-c", 'for word do printf "%s\\0" "$word"; done', "sh", *words])
    assert result.stdout == b"".join(word.encode() + b"\0" for word in words)


def test_a_nul_byte_is_refused_before_it_is_sent(any_shell: Shell) -> None:
    with pytest.raises(UserError, match="NUL"):
        any_shell.run(["echo", "a\0b"])


def test_more_output_than_any_window_holds_does_not_block(any_shell: Shell) -> None:
    program = (
        "import sys; e = b'e' * 5_000_000; sys.stderr.buffer.write(e); sys.stdout.buffer.write(sys.stdin.buffer.read())"
    )
    sent = os.urandom(5_000_000)
    result = any_shell.run(["python3", "-c", program], stdin=sent)
    assert result.code == 0
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(sent).digest()
    assert len(result.stderr) == 5_000_000


def test_a_command_that_does_not_read_its_stdin_still_ends(any_shell: Shell) -> None:
    result = any_shell.run(["sh", "-c", "exec <&-; echo done"], stdin=b"x" * 4_000_000)
    assert (result.code, result.stdout) == (0, b"done\n")


def test_an_unknown_command_is_a_result(any_shell: Shell) -> None:
    assert any_shell.run(["no-such-command-anywhere"]).code == 127


def test_a_command_killed_by_a_signal_is_a_result(any_shell: Shell) -> None:
    assert any_shell.run(["sh", "-c", "kill -9 $$"]).code not in {0, 1}
    assert any_shell.run(["echo", "still here"]).stdout == b"still here\n"


def test_the_deadline_ends_the_wait(any_shell: Shell) -> None:
    started = time.monotonic()
    with pytest.raises(LinkLost, match="sleep 300"):
        any_shell.run(["sleep", "300"], deadline_s=0.5)
    assert time.monotonic() - started < PATIENCE * 10


def test_lines_come_one_by_one_as_they_are_written(any_shell: Shell) -> None:
    program = "read line; echo first $line; read again || echo second; printf 'no newline'"
    with any_shell.lines(["sh", "-c", program], stdin=b"question\n") as lines:
        assert next(lines) == b"first question"
        assert list(lines) == [b"second", b"no newline"]


def test_silence_in_a_stream_is_a_lost_link(any_shell: Shell) -> None:
    with any_shell.lines(["sh", "-c", "echo one; sleep 60"], silence_s=4) as lines:
        assert next(lines) == b"one"
        with pytest.raises(LinkLost, match="silent for 4 s"):
            next(lines)


def test_a_bad_ending_of_a_stream_names_code_and_last_words(any_shell: Shell) -> None:
    with (
        any_shell.lines(["sh", "-c", "echo one; echo why >&2; exit 9"]) as lines,
        pytest.raises(CommandFailed, match="exit code 9: why"),
    ):
        assert list(lines)


def test_leaving_a_stream_early_ends_it_and_the_shell_goes_on(any_shell: Shell) -> None:
    with any_shell.lines(["sh", "-c", "while echo again; do sleep 0.05; done"]) as lines:
        assert next(lines) == b"again"
    assert any_shell.run(["echo", "next"]).stdout == b"next\n"


def test_the_callers_own_errors_pass_through_a_stream_unchanged(any_shell: Shell) -> None:
    with pytest.raises(TimeoutError, match="mine"), any_shell.lines(["echo", "x"]):
        raise TimeoutError("mine")


def test_put_and_get_keep_bytes_mode_and_folders(any_shell: Shell, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "deep" / "back"
    source.write_bytes(os.urandom(3_000_000))
    remote = str(tmp_path / "far" / "it's a 'name'; $(x)")
    any_shell.put(source, remote, mode=0o755)
    any_shell.get(remote, back)
    assert back.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(Path(remote).stat().st_mode) == 0o755
    assert stat.S_IMODE(back.stat().st_mode) == 0o600
    assert [file.name for file in back.parent.iterdir()] == ["back"]


def test_relative_and_tilde_paths_start_at_the_home_folder(any_shell: Shell, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"hello")
    any_shell.put(source, "~/a/one")
    any_shell.put(source, "two")
    assert any_shell.run(["cat", "a/one", "two"]).stdout == b"hellohello"


def test_get_of_a_missing_file_leaves_nothing_and_keeps_the_old(any_shell: Shell, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "file"
    mine.parent.mkdir()
    mine.write_text("old")
    with pytest.raises(CommandFailed, match="no readable file"):
        any_shell.get(str(tmp_path / "nothing"), mine)
    assert [(file.name, file.read_text()) for file in mine.parent.iterdir()] == [("file", "old")]


def test_put_on_a_full_disk_says_so_and_keeps_the_old_file(any_shell: Shell, small_disk: Path, tmp_path: Path) -> None:
    source, remote = tmp_path / "source", small_disk / "file"
    remote.write_text("old")
    source.write_bytes(os.urandom(4 * SMALL_DISK_BYTES))
    with pytest.raises((MachineUnfit, UserError), match=r"disk is full|no space left"):
        any_shell.put(source, str(remote))
    assert [(file.name, file.read_text()) for file in small_disk.iterdir()] == [("file", "old")]
