"""Exceptions become a message, a hint and an exit code; the traceback goes to a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.failures import explain, explained, run_folder
from orchestrator.core import errors

CODES = [
    (errors.UserError, 2),
    (errors.RunLocked, 2),
    (errors.LedgerDamaged, 2),
    (errors.ProviderError, 3),
    (errors.NoCapacity, 3),
    (errors.RemoteError, 4),
    (errors.HostKeyChanged, 4),
    (errors.LimitReached, 6),
    (errors.StillBilling, 7),
]


def raised(error: BaseException, **options: bool) -> int | str | None:
    """The exit code of a verb that raises this."""

    @explained
    def verb(verbose: bool = False) -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        verb(**options)
    return ended.value.code


@pytest.mark.parametrize(("kind", "code"), CODES)
def test_each_failure_has_its_exit_code_its_message_and_its_hint(
    kind: type[errors.GptctlError], code: int, gptctl_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gptctl_home.mkdir()
    assert raised(kind("it broke", "mend it")) == code
    assert list(gptctl_home.iterdir()) == []
    assert capsys.readouterr().err == "gptctl: it broke\ngptctl: next: mend it\n"


def test_a_bug_is_one_and_names_the_file_with_the_traceback(
    gptctl_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gptctl_home.mkdir()
    assert raised(ZeroDivisionError("oh")) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in said
    assert "Traceback" not in said
    assert str(gptctl_home / "traceback.txt") in said
    assert "ZeroDivisionError: oh" in (gptctl_home / "traceback.txt").read_text()
    assert (gptctl_home / "traceback.txt").stat().st_mode & 0o077 == 0


def test_the_traceback_goes_into_the_run_folder_once_there_is_a_run(tmp_path: Path, gptctl_home: Path) -> None:
    gptctl_home.mkdir()
    token = run_folder.set(tmp_path)
    try:
        assert explain(errors.UserError("it broke"), verbose=False) == 2
    finally:
        run_folder.reset(token)
    assert "it broke" in (tmp_path / "traceback.txt").read_text()
    assert not (gptctl_home / "traceback.txt").exists()


def test_verbose_shows_the_traceback(gptctl_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert raised(errors.UserError("it broke"), verbose=True) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_message_from_a_machine_cannot_drive_the_terminal(
    gptctl_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raised(errors.RemoteError("\x1b]0;owned\x07it \x1b[31mbroke")) == 4
    assert capsys.readouterr().err == "gptctl: it broke\n"


def test_ctrl_c_is_no_failure_of_ours(gptctl_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert raised(KeyboardInterrupt()) == 130
    assert "continues" in capsys.readouterr().err


def test_a_verb_that_returns_ends_with_its_code() -> None:
    @explained
    def verb() -> int:
        return 6

    with pytest.raises(SystemExit) as ended:
        verb()
    assert ended.value.code == 6
