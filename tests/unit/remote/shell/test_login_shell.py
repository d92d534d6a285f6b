"""What a login shell prints before an answer, and commands that every kind of login shell hands on unchanged."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import MachineUnfit
from orchestrator.remote.shell import login_shell
from orchestrator.remote.shell.login_shell import Answer, first_line, new_mark, refused, shell_line, shown

MARK = b"\ngptctl-0123456789abcdef\n"


def heard(stream: bytes, piece_bytes: int) -> tuple[bytes, Answer]:
    """What a command's caller gets of a stream that comes in pieces."""
    answer = Answer(MARK)
    pieces = [stream[at : at + piece_bytes] for at in range(0, len(stream), piece_bytes)]
    return b"".join(map(answer.after, pieces)), answer


@settings(deadline=None)
@given(noise=st.binary(), own=st.binary(), piece_bytes=st.integers(1, 40))
def test_what_stands_before_the_mark_is_dropped_and_kept(noise: bytes, own: bytes, piece_bytes: int) -> None:
    got, answer = heard(noise + MARK + own, piece_bytes)
    assert (got, answer.noise, answer.begun) == (own, noise, True)


@settings(deadline=None)
@given(noise=st.binary(max_size=200), piece_bytes=st.integers(1, 40))
def test_without_a_mark_there_is_no_answer(noise: bytes, piece_bytes: int) -> None:
    got, answer = heard(noise, piece_bytes)
    assert (got, answer.begun, answer.noise) == (b"", False, noise)


def test_a_login_that_prints_without_end_is_refused() -> None:
    with pytest.raises(MachineUnfit, match="prints more than 1 MiB"):
        heard(b"x" * (2 << 20), 64 << 10)


SHELLS = [name for name in ("sh", "bash", "dash", "zsh", "ksh", "tcsh", "bsd-csh", "fish") if shutil.which(name)]


@settings(max_examples=15, deadline=None)
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=4))
@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_hands_the_words_on(shell: str, words: list[str]) -> None:
    argv = ["printf", "%s\\0", "a'b\n!!\\n$HOME `x` *", *words]
    ran = subprocess.run(
        [shell, "-c", login_shell.COMMAND], input=first_line(argv, MARK), capture_output=True, check=False
    )
    answer = Answer(MARK)
    assert answer.after(ran.stdout).split(b"\0")[:-1] == [word.encode() for word in argv[2:]], ran.stderr


def test_the_request_leaves_the_commands_own_stdin_alone() -> None:
    mark = new_mark()
    given_bytes = first_line(["cat"], mark) + b"\x00two\nlines"
    ran = subprocess.run(["sh", "-c", login_shell.COMMAND], input=given_bytes, capture_output=True, check=True)
    assert Answer(mark).after(ran.stdout) == b"\x00two\nlines"


def test_a_program_under_the_home_folder_is_found_there() -> None:
    assert shell_line(["~/my venv/bin/python", "~/x"]) == "~/'my venv/bin/python' '~/x'"


@pytest.mark.parametrize(
    ("noise", "words", "hint"),
    [
        (b'Please login as the user "ubuntu" rather than the user "root".\n', 'the user "ubuntu"', "set `user`"),
        (b"This account is currently not available.\n", "currently not available", "login shell"),
        (b"\x00\x00\x00\x05\xff\x00", "nothing readable (exit code 1)", "ForceCommand"),
    ],
)
def test_a_login_that_runs_nothing_is_quoted(noise: bytes, words: str, hint: str) -> None:
    error = refused("box", noise, b"", 1)
    assert words in error.message and hint in error.hint


def test_noise_is_shown_on_one_short_line() -> None:
    assert shown(b"\n Welcome \n\n to rig\n") == "Welcome | to rig"
    assert len(shown(b"x" * 1000)) == 303
