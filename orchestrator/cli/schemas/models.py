"""What the commands about models and data print with --json. Types only; open where a program of the trainer adds keys.

Example: `TypeAdapter(Samples).json_schema(mode="serialization")`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired

from typing_extensions import TypedDict

from orchestrator.cli.inference.judge_scores import Verdict
from orchestrator.cli.schemas.runs import OPEN, Measured


class Sampled(TypedDict):
    """A text that the model wrote, without its prompt's beginning cut off."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt: str
    text: str
    tokens: NotRequired[int]
    tokens_per_second: NotRequired[float]


class Samples(TypedDict):
    """`sample`: `run` is null for a folder."""

    run: str | None
    checkpoint: str
    samples: list[Sampled]


class Attention(TypedDict):
    """`attention`."""

    model: str
    tokens: list[str]
    files: list[str]


class Imported(TypedDict):
    """`import`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    run: str
    folder: str
    layout: str
    parameters: int
    tokenizer: str
    dropped: list[str]
    remarks: list[str]


class Exported(TypedDict):
    """`export`: the folder and its files; `pushed` says where to, if it was."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    run: str
    step: int
    to: str
    format: str
    files: Mapping[str, Mapping[str, Any]]
    parameters: int
    zero_biases: int
    seconds: float
    pushed: NotRequired[Mapping[str, Any] | None]
    space: NotRequired[str]


class Evaluated(TypedDict):
    """`eval`: `run` is the folder's path for a folder."""

    run: str
    step: int | None
    evaluations: list[Measured]


class Judged(TypedDict):
    """`judge`: best first."""

    judge: str
    endpoint: str
    test: str
    models: list[Verdict]


class TokenFile(TypedDict):
    """A file of tokens."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    name: str
    size_bytes: int
    format: str | None
    dtype: str | None
    tokens: int | None
    min_id: NotRequired[int | None]
    max_id: NotRequired[int | None]
    problems: list[str]


IdRange = TypedDict("IdRange", {"from": int, "to": int, "count": int, "share": float})
"""How many tokens have an id in a range."""


class FrequentId(TypedDict):
    """One of the most frequent ids."""

    id: int
    count: int
    share: float
    text: str | None


class Head(TypedDict):
    """The first tokens."""

    ids: list[int]
    text: str | None


class Inspected(TypedDict):
    """`data inspect`: exit code 2 with `problems`."""

    path: str
    format: str | None
    dtype: str | None
    tokenizer: str | None
    vocab_size: int | None
    tokens: int
    documents: int | None
    min_id: int | None
    max_id: int | None
    distinct_ids: int
    histogram: list[IdRange]
    most_frequent: list[FrequentId]
    head: Head
    files: list[TokenFile]
    problems: list[str]


class Converted(TypedDict):
    """`data convert`."""

    to: str
    format: str
    dtype: str
    files: Mapping[str, Mapping[str, Any]]


class CheckedFile(TypedDict):
    """A file against its entry in dataset.json."""

    name: str
    ok: bool
    problems: list[str]
    damaged_blocks: list[int]


class Verified(TypedDict):
    """`data verify`: exit code 4 unless `ok`."""

    path: str
    ok: bool
    size_bytes: int
    files: list[CheckedFile]
    problems: list[str]


class Share(TypedDict):
    """One of two datasets: how much of it is in the other."""

    path: str
    documents: int
    tokens: int
    shared_documents: int
    shared_tokens: int


class Overlap(TypedDict):
    """`data overlap`."""

    a: Share
    b: Share
    separator: int
    compared_tokens: int


class Prepared(TypedDict):
    """`data prepare` and `merge`: dataset.json, and where it is; of one shard no `files`. `unchanged`: it was there."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    to: str
    unchanged: bool
    files: NotRequired[Mapping[str, Mapping[str, Any]]]
    shard: NotRequired[str]


class PushedFile(TypedDict):
    """A file that is in the bucket now; `sent` false: it was there."""

    name: str
    size_bytes: int
    sent: bool
    uri: str


class Pushed(TypedDict):
    """`data push`."""

    to: str
    size_bytes: int
    files: list[PushedFile]
