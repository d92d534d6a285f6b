"""JSON that a hostile or broken machine might answer: anything at all, and honest answers with one wrong place."""

from __future__ import annotations

import types
import typing
from typing import Any

from hypothesis import strategies as st

HUGE = 10**400
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([HUGE, -HUGE, 1 << 63, 1 << 64])
    | st.floats()
    | st.text(st.characters(min_codepoint=1, max_codepoint=0x2100), max_size=8)
    | st.sampled_from(["../x", "/etc/passwd", "a\x1b[2Jb", "a\u202eb", "\ud800", "", ".", "x" * 70_000])
)
anything: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def honest(hint: Any) -> Any:
    """A value of a TypedDict, or of a type inside one, with every key."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if typing.is_typeddict(hint):
        return {key: honest(inner) for key, inner in typing.get_type_hints(hint).items()}
    if origin in (typing.Union, types.UnionType):
        return honest(next(each for each in arguments if each is not types.NoneType))
    if origin in (list, dict):
        return [honest(arguments[0])] if origin is list else {"k": honest(arguments[1])}
    return {str: "x", int: 1, float: 1.5, bool: True}.get(hint)


@st.composite
def damaged(draw: st.DrawFn, value: Any) -> Any:
    """The JSON value with one value replaced or one key dropped, at any depth."""
    return _damage(draw, value)


def _damage(draw: st.DrawFn, value: Any) -> Any:
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or draw(st.integers(0, 5)) == 0:
        return draw(anything)
    place = draw(st.sampled_from(inside))
    copy = value.copy()
    if isinstance(copy, dict) and draw(st.integers(0, 3)) == 0:
        del copy[place]
    else:
        copy[place] = _damage(draw, copy[place])
    return copy
