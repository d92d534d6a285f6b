"""`gptctl data inspect`, `convert` and `verify`, by the trainer's own programs on this computer.

Example::

    inspect(Path("data/book"), tokenizer=None, head=64, as_json=False)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli.data.program import run_program
from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.screen.screen import show_table, talk
from orchestrator.cli.screen.tables import Column
from orchestrator.core.errors import VerificationFailed
from orchestrator.core.formats import DASH, count, percent, size

BAR_CELLS = 40
PROBLEMS_SHOWN = 10


def inspect(path: Path, tokenizer: str | None, head: int, dtype: str | None, *, as_json: bool) -> int:
    """Prints what the files hold; returns 2 on problems."""
    named = [f"--tokenizer={tokenizer}"] if tokenizer else []
    found = run_program("tokens.inspect_tokens", [str(path.absolute()), *named, *_vouched(dtype), f"--head={head}"])
    found.pop("event")
    found["path"] = str(path)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    return 2 if found["problems"] else 0


def convert(path: Path, kind: str, to: Path, dtype: str | None, *, overwrite: bool, as_json: bool) -> int:
    """Converts, and prints what was written."""
    more = ["--overwrite"] if overwrite else []
    arguments = [str(path.absolute()), f"--format={kind}", f"--to={to.absolute()}", *more, *_vouched(dtype)]
    done = run_program("tokens.convert", arguments)
    done.pop("event")
    done["to"] = str(to)
    if as_json:
        print(json.dumps(done, indent=1))
        return 0
    rows = [(name, f"{entry['tokens']:,}", size(entry["size_bytes"])) for name, entry in done["files"].items()]
    show_table((Column("file"), Column("tokens", True), Column("size", True)), rows)
    print(f"converted: {path} is in {to} as {done['format']} ({done['dtype']})")
    return 0


def _vouched(dtype: str | None) -> list[str]:
    return [f"--dtype={dtype}"] if dtype else []


def verify(path: Path, *, as_json: bool) -> int:
    """Prints the result. Raises VerificationFailed if anything differs."""
    found = run_program("tokens.verify", [str(path.absolute())], needs=())
    found.pop("event")
    found["path"] = str(path)
    if as_json:
        print(json.dumps(found, indent=1))
    elif found["ok"]:
        print(f"verified: {len(found['files'])} files, {size(found['size_bytes'])}, every byte as dataset.json says")
    if found["ok"]:
        return 0
    if as_json:  # it has said so
        return VerificationFailed.exit_code
    raise VerificationFailed(
        f"{path} does not match its dataset.json: {_first(found['problems'])}",
        "fetch or prepare the damaged files again; `gptctl data prepare` writes the same bytes for the same text",
    )


def _first(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
    return "; ".join(problems[:PROBLEMS_SHOWN]) + more


def _show(found: dict[str, Any]) -> None:
    show_table(
        (
            Column("file"),
            Column("format", leaves=1),
            Column("type", leaves=2),
            Column("tokens", right=True),
            Column("size", right=True),
            Column("ids", leaves=3),
        ),
        [
            (
                file["name"],
                file["format"] or DASH,
                file["dtype"] or DASH,
                f"{file['tokens']:,}" if file["tokens"] is not None else DASH,
                size(file["size_bytes"]),
                f"{file.get('min_id')} to {file.get('max_id')}" if file.get("max_id") is not None else DASH,
            )
            for file in found["files"]
        ],
    )
    known = f"{found['tokenizer']}, {found['vocab_size']:,} ids" if found["tokenizer"] else "unknown (try --tokenizer)"
    print(f"\ntokens     {found['tokens']:,} ({count(found['tokens'])}), {found['distinct_ids']:,} different ids")
    print(f"tokenizer  {known}")
    if found["documents"] is not None:
        print(f"documents  {found['documents']:,}")
    _show_head(found["head"])
    _show_histogram(found["histogram"])
    _show_most_frequent(found["most_frequent"])
    for problem in found["problems"][:PROBLEMS_SHOWN]:
        talk(f"problem: {problem}", style="bold red")
    if len(found["problems"]) > PROBLEMS_SHOWN:
        talk(f"and {len(found['problems']) - PROBLEMS_SHOWN} more: --json lists all")


def _show_head(head: dict[str, Any]) -> None:
    if head["text"] is not None:
        print("\nbegins with\n" + "\n".join(f"  {line}" for line in clean(head["text"]).splitlines()))
    elif head["ids"]:
        print(f"\nbegins with  {' '.join(str(each) for each in head['ids'][:32])}")


def _show_histogram(bins: Sequence[dict[str, Any]]) -> None:
    """Bars over equal ranges of ids; the longest fills the row, and a range that is not empty shows at least a dot."""
    most = max((each["count"] for each in bins), default=0)
    if not most:
        return
    print("\nids")
    for each in bins:
        cells = round(BAR_CELLS * each["count"] / most)
        bar = "#" * cells or ("." if each["count"] else "")
        amount = f"{percent(each['share']):>6} {count(each['count']):>6}"
        print(f"  {each['from']:>7}-{each['to']:<7} {bar:<{BAR_CELLS}} {amount}")


def _show_most_frequent(tokens: Sequence[dict[str, Any]]) -> None:
    if tokens:
        words = (
            f"{json.dumps(each['text']) if each['text'] else each['id']} {percent(each['share'])}" for each in tokens
        )
        print("\nmost frequent  " + "  ".join(clean(word) for word in words))
