"""The one door for what a machine answers: a JSON line becomes a value of its contract's shape, or an AgentError.

The shapes are the TypedDicts of orchestrator/agent/contract. Keys that a shape does not name pass unchecked, and must
not be read. It must not repair anything: a number in quotes is a wrong answer.

Example::

    decoded(Lease, {"left_s": 1799.2, "deadline_left_s": None}, "renew")       # the same, typed
    decoded(Lease, {"left_s": "soon"}, "renew")        # AgentError: agent renew: left_s is 'soon', not a number
"""

from __future__ import annotations

import types
import typing
from functools import cache

from orchestrator.core.errors import AgentError
from orchestrator.core.typed_json import WrongJson, parse

T = typing.TypeVar("T")
SHOWN_CHARACTERS = 60
MOST_WHOLE = 1 << 63
"""What databases and file systems hold."""
MOST_NUMBER = 1e12
"""No duration in seconds, moment or rate of a machine is larger, and every calendar still has a date for it."""
BAD_ANSWER = "bad-answer"
WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", types.NoneType: "null"}


def json_object(line: bytes) -> dict[str, object] | None:
    """The object on a line; None for anything else, such as the greeting of a talkative login shell."""
    try:
        value = parse(line)
    except WrongJson:
        return None
    return value if isinstance(value, dict) else None


def last_object(said: bytes) -> dict[str, object]:
    """The last line that is an object: a login shell may print once more when it ends. Without one it is empty."""
    found = map(json_object, reversed(said.splitlines()))
    return next((each for each in found if each is not None), {})


def decoded(shape: type[T], value: object, verb: str) -> T:
    """The value, if it has that shape. Raises AgentError that names the first key that does not fit."""
    _check(shape, value, verb, "")
    return typing.cast(T, value)


def refuse(verb: str, words: str) -> AgentError:
    """The error for an answer that an honest agent does not give."""
    return AgentError(
        f"agent {verb}: {words}",
        "the machine answers in a way that gptctl does not understand; look at it: gptctl check HOST",
        code=BAD_ANSWER,
    )


def _check(hint: object, value: object, verb: str, place: str) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is object:
        return
    if typing.is_typeddict(hint):
        _check_keys(typing.cast(type, hint), value, verb, place)
    elif origin is list and isinstance(value, list):
        for number, item in enumerate(value):
            _check(arguments[0], item, verb, f"{place}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            _check(arguments[1], item, verb, f"{place}.{key}" if place else key)
    elif origin in (typing.Union, types.UnionType):
        if value is not None or types.NoneType not in arguments:
            _check(next(each for each in arguments if each is not types.NoneType), value, verb, place)
    elif not (isinstance(hint, type) and _is_a(hint, value)):
        raise _wrong(hint, value, verb, place)


def _check_keys(shape: type, value: object, verb: str, place: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(dict, value, verb, place)
    for key, hint in _hints(shape).items():
        path = f"{place}.{key}" if place else key
        if key in value:
            _check(hint, value[key], verb, path)
        elif key in typing.cast(typing.Any, shape).__required_keys__:
            raise refuse(verb, f"{path} is missing")


@cache
def _hints(shape: type) -> dict[str, object]:
    return typing.get_type_hints(shape)


def _is_a(kind: type, value: object) -> bool:
    """As JSON has it: true is not a number, 3 is a float too, and no number is infinite or beyond all use."""
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and -MOST_NUMBER <= value <= MOST_NUMBER
    return isinstance(value, kind) and not (isinstance(value, int) and abs(value) >= MOST_WHOLE)


def _wrong(hint: object, value: object, verb: str, place: str) -> AgentError:
    words = WORDS.get(typing.cast(type, hint)) or ("a list" if typing.get_origin(hint) is list else "an object")
    return refuse(verb, f"{place or 'the answer'} is {repr(value)[:SHOWN_CHARACTERS]}, not {words}")
