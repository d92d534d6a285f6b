"""Which files of a Hub repository, a bucket or a web folder are the text to prepare. Pure.

Example: `choose(["README.md", "data/train-0.parquet", "data/test-0.parquet"], "hf://me/x")` -> ["data/train-0.parquet"]
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.errors import UserError
from orchestrator.core.safe_names import WILD

KINDS = (
    (".parquet",),
    (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    (".txt", ".txt.gz"),
    (".csv", ".tsv", ".csv.gz", ".tsv.gz"),
)
"""The first kind that is there is taken: a repository often holds the same text in several."""
TRAIN = "train"


def choose(names: Sequence[str], uri: str) -> list[str]:
    """Names to prepare, in name order. What a URI names as a file or by a pattern is taken as it is; of a folder, the
    training part where one is named so: the validation documents are chosen here. Raises UserError for no text."""
    if len(names) == 1 or WILD.search(uri):
        return sorted(names)
    for suffixes in KINDS:
        found = sorted(name for name in names if name.lower().endswith(suffixes))
        if found:
            return [name for name in found if TRAIN in name.lower()] or found
    some = ", ".join(sorted(names)[:8]) or "nothing"
    raise UserError(
        f"{uri} holds no Parquet, JSON Lines, text or CSV file; there are: {some}",
        f"name files: '{uri}/FOLDER/*.parquet'",
    )
