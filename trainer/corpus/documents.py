"""Text files, JSON Lines, CSV and Parquet as one stream of raw documents, in bounded memory, from any position.

The order depends only on the files' paths and their content. Documents leave as bytes in batches of 512 KiB, each with
the place after it, so that another process can resume there after a kill. The end-of-text mark separates a text file's
documents; a large one arrives in pieces, cut where no tokenizer joins anything: before the white space after a letter.
It must not know about tokens.

Example::

    files = find_files(["books/*.txt"])
    for batch in read_batches(files, Place(), column="text"):
        batch.records, batch.after, batch.done_bytes
"""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import re
import sysconfig
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from trainer.corpus import csv_rows
from trainer.corpus.csv_rows import BYTE_ORDER_MARK
from trainer.corpus.parquet import CorpusError, read_rows
from trainer.tokens.tokenizer import END_OF_TEXT

PYTHON_STDLIB = "python-stdlib"
STDLIB_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"})
TEXT, JSON_LINES, CSV, PARQUET = "text", "JSON Lines", "CSV", "Parquet"
SUFFIXES = {
    ".txt": TEXT, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON_LINES, ".parquet": PARQUET,
    ".csv": CSV, ".tsv": CSV,
}  # fmt: skip
"""Any other suffix is text, for a file given by name; in a folder, files with these suffixes count, except .json."""
TABLES = {".csv", ".tsv"}
"""In a folder they are often about the text: there they count only without other text."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
GZIP = ".gz"
BATCH_BYTES = 2**19
BATCH_RECORDS = 10_000
PIECE_BYTES = 4 * 2**20
"""A larger text document is read twice: for its hash, which decides the side of the split, and for its tokens."""
LONGEST_LINE_BYTES = 256 * 2**20
MARK = END_OF_TEXT.encode()
CUT = re.compile(r"[^\W\d_](?=[ \n])")


@dataclass(frozen=True)
class SourceFile:
    """One file of the source."""

    path: Path
    kind: str
    size_bytes: int
    start: int = 0
    """Of a part of a file: its first byte, where a document begins."""
    stop: int | None = None
    """Of a part of a file: the byte after its last one. None: the file's end."""


class BoundedFile:
    """A part of a binary file, up to a byte, at the positions of the whole file."""

    def __init__(self, file: BinaryIO, start: int, stop: int | None) -> None:
        self.file, self.stop = file, stop
        file.seek(start)

    def read(self, size: int) -> bytes:
        """At most so many bytes, none beyond the end."""
        return self.file.read(self._within(size))

    def readline(self, size: int) -> bytes:
        return self.file.readline(self._within(size))

    def seek(self, offset: int) -> int:
        return self.file.seek(offset)

    def tell(self) -> int:
        return self.file.tell()

    def _within(self, size: int) -> int:
        return size if self.stop is None else max(0, min(size, self.stop - self.file.tell()))


@dataclass(frozen=True)
class Extent:
    """Where a large document is in its file, its sha256, and whether all of it is UTF-8."""

    start: int
    stop: int
    sha256: str
    valid: bool


@dataclass(frozen=True)
class Place:
    """A place in a list of files: bytes (or rows) of file number `file` before it, possibly within a large document."""

    file: int = 0
    offset: int = 0
    extent: Extent | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a large document."""

    raw: bytes
    extent: Extent
    first: bool
    last: bool


class Record(NamedTuple):
    """One raw document, line or piece; where the next one begins, and how many bytes of the file are read by then."""

    raw: bytes | Piece
    offset: int
    extent: Extent | None
    done_bytes: int


@dataclass(frozen=True)
class Batch:
    """Raw documents of one kind: what a worker gets. `start` is the offset of the first one."""

    path: Path
    kind: str
    start: int
    records: tuple[bytes | Piece, ...]
    after: Place
    done_bytes: int
    """Bytes of all files up to here, for progress; compressed bytes where files are compressed."""


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """The files of paths, globs and folders, sorted, whatever the file system's order. Raises CorpusError."""
    if list(sources) == [PYTHON_STDLIB]:
        return [SourceFile(path, TEXT, path.stat().st_size) for path in _stdlib()]
    paths = {path for source in sources for path in _expand_source(source)}
    return [SourceFile(path, file_kind(path), path.stat().st_size) for path in sorted(paths)]


def file_kind(path: Path) -> str:
    """By the suffix before .gz; an unknown suffix is text. Raises CorpusError for other compressions."""
    name = Path(path.name.removesuffix(GZIP))
    if path.suffix in (".zst", ".xz", ".bz2", ".zip"):
        raise CorpusError(f"{path}: {path.suffix} cannot be read: unpack it, or compress it with gzip")
    return SUFFIXES.get(name.suffix.lower(), TEXT)


def _expand_source(source: str) -> list[Path]:
    if "://" in source:
        raise CorpusError(f"{source} is not a local file: download it first, or give a file, a folder or a glob")
    path = Path(source)
    if path.is_dir():
        return _in_folder(path)
    files = [Path(name) for name in ([source] if path.is_file() else glob.glob(source, recursive=True))]
    files = [path for path in files if path.is_file()]
    if not files:
        raise CorpusError(f"{source} matches no text file: give a file, a folder or a glob in quotes")
    return files


def _in_folder(folder: Path) -> list[Path]:
    suffixes = set(SUFFIXES) - {".json"}
    candidates = [path for path in folder.rglob("*") if Path(path.name.removesuffix(GZIP)).suffix.lower() in suffixes]
    found = [path for path in candidates if path.is_file()]
    files = [path for path in found if file_kind(path) != CSV] or found
    kinds = {file_kind(path) for path in files}
    if len(kinds) > 1:
        raise CorpusError(f"{folder} has {' and '.join(sorted(kinds))}: choose one kind with a glob in quotes")
    if not files:
        raise CorpusError(f"{folder} has no text file: no .txt, .jsonl, .parquet or .csv found")
    return files


def _stdlib() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    # Sorted by the hash of their names: the size limit then takes a sample of the whole, not the letters a to m.
    modules = (path for path in root.rglob("*.py") if not STDLIB_SKIPPED.intersection(path.relative_to(root).parts))
    return sorted(modules, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())


def read_batches(files: Sequence[SourceFile], place: Place, column: str) -> Iterator[Batch]:
    """Everything after the place, in order. A batch may span several text files."""
    before_bytes = sum(file.size_bytes for file in files[: place.file])
    records: list[bytes | Piece] = []
    first = files[place.file].start if place.file < len(files) else 0
    gathered_bytes, start = 0, max(place.offset, first)
    for index in range(place.file, len(files)):
        file, offset, extent = files[index], 0, None
        if index == place.file:
            offset, extent = place.offset, place.extent
        after, done_bytes = Place(index + 1), before_bytes + file.size_bytes
        for record in _read_file(file, offset, extent, column):
            records.append(record.raw)
            gathered_bytes += len(record.raw.raw if isinstance(record.raw, Piece) else record.raw)
            if gathered_bytes >= BATCH_BYTES or len(records) >= BATCH_RECORDS:
                here = Place(index, record.offset, record.extent)
                done = before_bytes + min(record.done_bytes - file.start, file.size_bytes)
                yield Batch(file.path, file.kind, start, tuple(records), here, done)
                records, gathered_bytes, start = [], 0, record.offset
        before_bytes += file.size_bytes
        # Small text files share a batch; a line or row needs its position in one file.
        if records and (file.kind != TEXT or index + 1 == len(files) or files[index + 1].kind != TEXT):
            yield Batch(file.path, file.kind, start, tuple(records), after, done_bytes)
            records, gathered_bytes = [], 0
        if not records:
            start = 0


def _read_file(file: SourceFile, offset: int, extent: Extent | None, column: str) -> Iterator[Record]:
    if file.kind == PARQUET:
        for raw, row, share in read_rows(file.path, offset, column):
            yield Record(raw, row, None, int(share * file.size_bytes))
        return
    with _opened(file.path) as (stream, on_disk):
        if file.kind == CSV:
            for raw, after in csv_rows.read_rows(file.path, stream, offset, column):
                yield Record(raw, after, None, on_disk.tell())
            return
        begin = max(offset, file.start) or _text_start(file.path, stream)
        part = BoundedFile(stream, begin, file.stop)
        if file.kind == JSON_LINES:
            yield from _lines(file.path, part, on_disk)
        else:
            # A Python file is one document: a mark in it is source text, not a separator.
            yield from _documents(part, on_disk, extent, None if file.path.suffix == ".py" else MARK)


def _text_start(path: Path, stream: BinaryIO) -> int:
    """Where the text begins: after a byte order mark. Raises CorpusError for UTF-16."""
    head = stream.read(len(BYTE_ORDER_MARK))
    if head.startswith(UTF_16):
        raise CorpusError(f"{path} is UTF-16: iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}")
    return len(head) if head == BYTE_ORDER_MARK else 0


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file's content, and the file on disk, whose position is how far it is read."""
    with path.open("rb") as on_disk:
        if path.suffix != GZIP:
            yield on_disk, on_disk
            return
        try:
            with gzip.open(on_disk) as stream:
                yield stream, on_disk  # type: ignore[misc]  # reads as a BinaryIO does
        except (gzip.BadGzipFile, EOFError) as error:
            raise CorpusError(f"{path}: damaged, or not a gzip file: {error}") from error


def _lines(path: Path, stream: BoundedFile, on_disk: BinaryIO) -> Iterator[Record]:
    offset = stream.tell()
    while line := stream.readline(LONGEST_LINE_BYTES + 1):
        if offset <= len(BYTE_ORDER_MARK) and line.lstrip()[:1] == b"[":
            raise CorpusError(
                f"{path} is a JSON array, not JSON Lines: write one object a line with "
                f"jq -c '.[]' {path.name} > {path.stem}.jsonl"
            )
        if len(line) > LONGEST_LINE_BYTES:
            raise CorpusError(f"{path}: the line at byte {offset} is longer than 256 MiB: is this JSON Lines?")
        offset += len(line)
        yield Record(line, offset, None, on_disk.tell())


def _documents(stream: BoundedFile, on_disk: BinaryIO, extent: Extent | None, mark: bytes | None) -> Iterator[Record]:
    offset = stream.tell()
    if extent is not None:
        yield from _pieces(stream, on_disk, offset, extent)
        offset = extent.stop + len(mark or b"")
        stream.seek(offset)
    rest = b""
    while chunk := stream.read(BATCH_BYTES):
        *documents, rest = (rest + chunk).split(mark) if mark else [rest + chunk]
        for document in documents:
            offset += len(document) + len(mark or b"")
            yield Record(document, offset, None, on_disk.tell())
        if len(rest) > PIECE_BYTES:
            large = _extent(stream, offset, mark)
            yield from _pieces(stream, on_disk, offset, large)
            offset, rest = large.stop + len(mark or b""), b""
            stream.seek(offset)
    if rest:
        yield Record(rest, offset + len(rest), None, on_disk.tell())


def _extent(stream: BoundedFile, start: int, mark: bytes | None) -> Extent:
    """Finds the end of the document at `start`, and hashes it."""
    digest, decoder, valid = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), True
    stream.seek(start)
    rest, stop, ended = b"", start, False
    while not ended:
        chunk = stream.read(BATCH_BYTES)
        text = rest + chunk
        at = text.find(mark) if mark else -1
        ended = at >= 0 or not chunk
        # The last bytes may begin a mark: they wait for the next chunk.
        known = at if at >= 0 else len(text) - (len(mark) - 1 if mark and chunk else 0)
        text, rest = text[: max(known, 0)], text[max(known, 0) :]
        digest.update(text)
        stop += len(text)
        try:
            decoder.decode(text, final=ended)
        except UnicodeDecodeError:
            valid = False
            decoder.reset()
    return Extent(start, stop, digest.hexdigest(), valid)


def _pieces(stream: BoundedFile, on_disk: BinaryIO, offset: int, extent: Extent) -> Iterator[Record]:
    """The rest of the document from `offset`."""
    while offset < extent.stop:
        stream.seek(offset)
        raw = stream.read(min(PIECE_BYTES, extent.stop - offset))
        first, last = offset == extent.start, offset + len(raw) == extent.stop
        if not last:
            raw = raw[: _cut_position(raw)]
        offset += len(raw)
        # The place after the last piece is still within the extent: resuming there skips the mark.
        yield Record(Piece(raw, extent, first, last), offset, extent, on_disk.tell())


def _cut_position(raw: bytes) -> int:
    """Where to cut: after the last letter that white space follows; in a text without one, between characters."""
    text = raw.decode(errors="surrogateescape")  # no byte is lost, not even where the last character is cut in two
    for window in (2**12, 2**16, len(text)):
        last_cut = deque(CUT.finditer(text, max(0, len(text) - window)), maxlen=1)
        if last_cut:
            return len(text[: last_cut[0].end()].encode(errors="surrogateescape"))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(raw)
    return len(raw) - len(decoder.getstate()[0])
