"""Examples as rows of a token stream: an example a row of context_length ids, filled up at its end.

An id that the loss counts is stored as its bitwise complement, which is negative: so one stream of int32 holds ids and
mask, and is staged, cut and hashed like any other. For `classify` the counted number is a label, in place of the token
after the last one. A stream ends with one id of filling, the target of its last one. It must not know about prompts.

Example::

    row = example_row([10, 11], [12, 13], length=6, filling=0)          # [10, 11, ~12, ~13, 0, 0]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""The target of a position that the loss does not count, as in torch and transformers."""
DTYPE = "int32"

Row = npt.NDArray[np.int32]


def example_row(seen: Sequence[int], counted: Sequence[int], *, length: int, filling: int) -> Row:
    """The row (length,) of an example whose `counted` ids follow those that are only seen. ValueError if too long."""
    ids = [*seen, *(~each for each in counted)]
    if len(ids) > length:
        raise ValueError(f"{len(ids)} ids do not fit a row of {length}")
    return np.array(ids + [filling] * (length - len(ids)), dtype=np.int32)


def counted_in(rows: npt.NDArray[np.int64]) -> int:
    """How many of these stored ids the loss counts."""
    return int((rows < 0).sum())
