"""Examples as rows of a token stream: an example a row of context_length ids, filled up at its end.

An id that the loss counts is stored as its bitwise complement, which is negative: so one stream of int32 holds ids and
mask, and is staged, cut and hashed like any other. For `classify` the counted number is a label, in place of the token
after the last one. A stream ends with one id of filling, the target of its last one. It must not know about prompts.

Example::

    row = example_row([10, 11], [12, 13], length=6, filling=0)          # [10, 11, ~12, ~13, 0, 0]
    ids, targets = inputs_and_targets(rows)                             # rows: (n, length + 1) int64
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

IGNORED = -100
"""The target of a position that the loss does not count, as in torch and transformers."""
WIDTH_MULTIPLE = 8
DTYPE = "int32"

Row = npt.NDArray[np.int32]


def example_row(seen: Sequence[int], counted: Sequence[int], *, length: int, filling: int) -> Row:
    """The row (length,) of an example whose `counted` ids follow those that are only seen. ValueError if too long."""
    ids = [*seen, *(~each for each in counted)]
    if len(ids) > length:
        raise ValueError(f"{len(ids)} ids do not fit a row of {length}")
    return np.array(ids + [filling] * (length - len(ids)), dtype=np.int32)


def inputs_and_targets(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and targets (n, longest) int64 of rows (n, length + 1), each with the id after it; targets are IGNORED where
    nothing is counted. `longest`: of the longest example here, to the next multiple of eight: filling costs no time.
    """
    plain = torch.where(rows < 0, ~rows, rows)
    targets = torch.where(rows[:, 1:] < 0, plain[:, 1:], IGNORED)
    last = int((targets != IGNORED).any(dim=0).nonzero().max()) + 1 if bool((targets != IGNORED).any()) else 1
    longest = min(targets.shape[1], -(-last // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
    return plain[:, :longest].contiguous(), targets[:, :longest].contiguous()


def counted(targets: torch.Tensor) -> int:
    """How many targets the loss counts."""
    return int((targets != IGNORED).sum())


def counted_in(rows: npt.NDArray[np.int64]) -> int:
    """The same of stored ids."""
    return int((rows < 0).sum())
