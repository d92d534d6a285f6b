"""The SQLite file under the ledger: created whole, opened only when sound, translated when it fails.

It must not know what is kept in the tables, and never repairs: a damaged file is left exactly as it is.
WAL, so that readers never wait for a writer; `synchronous = FULL`, because an intent to buy has to survive a power cut.

    connection = open_database(home)
    with transaction(connection): ...
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.errors import LedgerDamaged, UserError

FILE = "ledger.db"
MIGRATIONS = ("schema.sql", "evaluations.sql", "sweeps.sql", "indexes.sql", "judged.sql")
"""Scripts beside this module, in order; `user_version` counts those applied."""

BUSY_TIMEOUT_S = 30.0
"""How long one gptctl waits for the write of another; writes take milliseconds."""
SYNCHRONOUS = "FULL"

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_REASONS = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space; nothing was half-written"),
    sqlite3.SQLITE_READONLY: ("it cannot be written", "make the folder writable, or set GPTCTL_HOME to another one"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "check the folder's owner and mode, or set GPTCTL_HOME"),
    sqlite3.SQLITE_PERM: ("access is denied", "check the folder's owner and mode, or set GPTCTL_HOME"),
    sqlite3.SQLITE_AUTH: ("access is denied", "check the folder's owner and mode, or set GPTCTL_HOME"),
    sqlite3.SQLITE_IOERR: ("reading or writing failed", "check free space and the disk, then repeat the command"),
}


def open_database(home: Path, *, examined: bool = False) -> sqlite3.Connection:
    """The ledger's connection, migrated. Creates home (0700) and the file (0600) whatever the umask. `examined`: this
    process has found the file sound before; reading all of it again takes a fifth of a second at 10,000 runs.

    Raises LedgerDamaged, changing nothing, when the file is not a sound database; UserError for a folder or disk that
    does not serve, or a ledger of a newer gptctl.
    """
    path = home / FILE
    with translated(path):
        prepare_home(home)
        if not path.exists():
            _create(path)
        if not examined:
            _examine(path)
        os.chmod(path, 0o600)
        connection = _connect(f"{path.absolute().as_uri()}?mode=rw")
        try:
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def prepare_home(home: Path) -> None:
    """Makes home a private folder of this user. Refuses a link, another's folder, and folders that serve others too:
    tightening the mode of /tmp or of the user's own home folder would break them."""
    hint = "set GPTCTL_HOME to a folder of your own"
    if home.is_symlink():
        raise UserError(f"{home} is a symbolic link: gptctl keeps its state in a real folder", hint)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.stat()
    if found.st_uid != os.geteuid():
        raise UserError(f"{home} belongs to user id {found.st_uid}, not to you ({os.geteuid()})", hint)
    if found.st_mode & stat.S_ISVTX or home.resolve() in (Path("/"), Path.home().resolve()):
        raise UserError(f"{home} is used for other things: gptctl would close it to everybody else", hint)
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(home, 0o700)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing. IMMEDIATE: what is read inside cannot change before it is written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """sqlite3's and the file system's errors as UserError or LedgerDamaged. Broken constraints are bugs and pass."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte; the rest details it
        if code in _DAMAGED:
            raise damaged(path, str(error)) from error
        if code not in _REASONS and code != sqlite3.SQLITE_BUSY:
            raise
        reason, hint = _why_busy(path) if code == sqlite3.SQLITE_BUSY else _REASONS[code]
        raise UserError(f"the ledger {path}: {reason} ({error})", hint) from error
    except OSError as error:
        raise UserError(
            f"the ledger {path}: {error.strerror or error} ({error.filename or path})",
            "check the folder's owner, mode and free space, or set GPTCTL_HOME to another folder",
        ) from error


def _why_busy(path: Path) -> tuple[str, str]:
    """Reason and hint for SQLITE_BUSY, which SQLite also says where the file system has no locks (ENOLCK)."""
    try:
        with (path.parent / f".lock-test-{uuid.uuid4().hex}").open("wb") as file:
            Path(file.name).unlink()
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        reason = f"this file system does not lock files ({error.strerror})"
        return reason, "set GPTCTL_HOME to a folder on a local disk"
    holders = _lock_holders(path)
    who = f"process {', '.join(map(str, holders))}" if holders else "another gptctl"
    return (
        f"{who} has held its lock for {BUSY_TIMEOUT_S:.0f} s",
        f"let it finish, or look at it: ps -fp {','.join(map(str, holders)) or 'PID'}; then run the command again",
    )


def _lock_holders(path: Path) -> list[int]:
    """Other processes with a lock on the database or its shared memory; empty where the system does not tell."""
    files = [each for each in (path, path.with_name(f"{path.name}-shm")) if each.exists()]
    inodes = {f":{each.stat().st_ino}" for each in files}
    try:
        rows = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except OSError:
        return []
    pids = {int(row[-4]) for row in rows if any(row[-3].endswith(inode) for inode in inodes)}
    return sorted(pids - {os.getpid(), -1, 0})


def damaged(path: Path, evidence: str) -> LedgerDamaged:
    """The error for a file that is not a sound database, with the way out."""
    home = path.parent
    return LedgerDamaged(
        f"the ledger {path} is damaged: {evidence}. It was left as it is; the run folders in {home / 'runs'} are "
        "untouched, and machines continue under their leases",
        f"restore {path} from a backup, or move it aside and start a new ledger: "
        f"mkdir '{home}/damaged' && mv '{path}'* '{home}/damaged/'   (look for machines you pay for at your provider)",
    )


def _create(path: Path) -> None:
    """Builds the database under a temporary name and links it into place.

    Never in place: a process killed in between, or a second one looking at that moment, would find an empty file,
    and an empty file means damage. Of two creators at once the first link wins.
    """
    strays = [name for name in (f"{path.name}-wal", f"{path.name}-journal") if (path.parent / name).exists()]
    if strays:
        raise damaged(path, f"the database is missing, but its {strays[0]} is there")
    temporary = path.with_name(f".new-{uuid.uuid4().hex}.db")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with contextlib.closing(_connect(f"{temporary.absolute().as_uri()}?mode=rw")) as connection:
            _migrate(connection)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        for stray in path.parent.glob(f"{temporary.name}*"):  # with its -wal and -shm, where closing failed
            stray.unlink()


def _examine(path: Path) -> None:
    """Raises LedgerDamaged unless the file is a database. Read-only, so that closing writes nothing into a bad one."""
    if path.is_symlink() or not path.is_file():
        raise damaged(path, "it is not a regular file")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise damaged(path, "it is empty (0 bytes)")
    log = path.with_name(f"{path.name}-wal")
    has_log = log.exists() and log.stat().st_size > 0  # read now: opening the database makes an empty one, which stays
    with contextlib.closing(_connect(f"{path.absolute().as_uri()}?mode=ro", wal=False)) as connection:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise damaged(path, str(verdict).replace("\n", ", "))
        # SQLite is asked, and the file never opened here: closing it would drop this process's locks on it (POSIX),
        # another gptctl would take the log for abandoned, and what we then write would be lost.
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        if size_bytes % page_bytes and not has_log:
            # SQLite pads the last page with zeros and sees nothing. Beside a log, the log repairs that page.
            raise damaged(path, f"its {size_bytes} bytes end within a page")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'runs'").fetchone()[0]
    if not tables:
        raise damaged(path, "it is a database without gptctl's tables")


def _connect(uri: str, wal: bool = True) -> sqlite3.Connection:
    # Threads take turns by Rows.turn.
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        if wal:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Applies the scripts the file has not seen, all or none."""
    if _version(connection) < len(MIGRATIONS):
        with transaction(connection):
            for script in MIGRATIONS[_version(connection) :]:
                for statement in Path(__file__).with_name(script).read_text(encoding="utf-8").split(";\n"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    if _version(connection) > len(MIGRATIONS):
        raise UserError("the ledger was written by a newer gptctl", "upgrade gptctl: pip install --upgrade gptctl")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
