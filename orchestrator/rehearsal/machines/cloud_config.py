"""Reads the user data of a launch as cloud-init would: the part of YAML that cloud-configs use.

Knows mappings, lists, `|` and `>` blocks, quoted and plain scalars, and JSON, but no anchors, multi-line scalars or
MIME parts. Raises ValueError for what it cannot read; cloud-init logs such a file and boots, and so does the machine.

Example: `parse("#cloud-config\\nruncmd:\\n- [touch, /tmp/x]\\n") == {"runcmd": [["touch", "/tmp/x"]]}`
"""

from __future__ import annotations

import json
import re
from typing import Any

KEY = re.compile(r"""^("(?:[^"\\]|\\.)*"|'[^']*'|[^\s'"#\[{-][^:#]*?)\s*:(?:\s+(.*))?$""")
BLOCK = re.compile(r"^([|>])([+-]?)$")
CONSTANTS = {"true": True, "false": False, "null": None, "~": None, "": None}

CloudConfig = dict[str, Any]
"""User data of any shape; its users check what they read."""

Line = tuple[int, str]
"""Indentation and the text after it; blank lines inside blocks have indentation -1."""


def parse(user_data: str) -> CloudConfig:
    """The cloud-config as a mapping; `#!` scripts become one runcmd. Raises ValueError."""
    if user_data.startswith("#!"):
        return {"script": user_data}
    header, _, body = user_data.partition("\n")
    if header.strip() != "#cloud-config":
        raise ValueError(f"user data starts with {header[:40]!r}, neither #cloud-config nor a script")
    try:
        value = json.loads(body)
    except ValueError:
        value = _Reader(body).value()
    if not isinstance(value, dict):
        raise ValueError("the cloud-config is not a mapping")
    return value


class _Reader:
    """Lines from top to bottom; `at` is the next one."""

    def __init__(self, text: str) -> None:
        self.lines: list[Line] = [
            (len(line) - len(line.lstrip(" ")) if line.strip() else -1, line.strip(" ")) for line in text.splitlines()
        ]
        self.at = 0

    def value(self) -> Any:
        return self._block(0)

    def _peek(self) -> Line | None:
        while self.at < len(self.lines) and (self.lines[self.at][0] < 0 or self.lines[self.at][1].startswith("#")):
            self.at += 1
        return self.lines[self.at] if self.at < len(self.lines) else None

    def _block(self, least: int) -> Any:
        """The value that begins on the next line, if its indentation is at least `least`."""
        line = self._peek()
        if line is None or line[0] < least:
            return None
        return self._list(line[0]) if _is_item(line[1]) else self._mapping(line[0])

    def _mapping(self, indent: int) -> CloudConfig:
        found: CloudConfig = {}
        while (line := self._peek()) and line[0] == indent and not _is_item(line[1]):
            match = KEY.match(line[1])
            if not match:
                raise ValueError(f"cannot read the line {line[1][:40]!r}")
            self.at += 1
            found[str(_scalar(match.group(1)))] = self._after(match.group(2) or "", indent, lists_may_align=True)
        return found

    def _list(self, indent: int) -> list[Any]:
        found: list[Any] = []
        while (line := self._peek()) and line[0] == indent and _is_item(line[1]):
            rest = line[1][1:].lstrip(" ")
            if KEY.match(rest) or _is_item(rest):  # a mapping or list that begins on the dash's own line
                inner = indent + len(line[1]) - len(rest)
                self.lines[self.at] = (inner, rest)
                found.append(self._block(inner))
            else:
                self.at += 1
                found.append(self._after(rest, indent, lists_may_align=False))
        return found

    def _after(self, text: str, indent: int, *, lists_may_align: bool) -> Any:
        """The value whose first line is `text`, of a key or dash at `indent`."""
        block = BLOCK.match(text)
        if block:
            return self._literal(indent, block.group(1), block.group(2))
        if text and not text.startswith("#"):
            return _scalar(text)
        line = self._peek()
        aligned = lists_may_align and line is not None and line[0] == indent and _is_item(line[1])
        return self._block(indent if aligned else indent + 1)

    def _literal(self, indent: int, style: str, chomp: str) -> str:
        taken: list[Line] = []
        while self.at < len(self.lines) and (self.lines[self.at][0] > indent or self.lines[self.at][0] < 0):
            taken.append(self.lines[self.at])
            self.at += 1
        margin = min((line[0] for line in taken if line[0] >= 0), default=0)
        rows = [" " * max(0, line[0] - margin) + line[1] for line in taken]
        text = ("\n" if style == "|" else " ").join(rows).rstrip("\n ")
        return text if chomp == "-" else text + "\n"


def _is_item(text: str) -> bool:
    return text == "-" or text.startswith("- ")


def _scalar(text: str) -> Any:
    text = text.strip()
    if text[:1] in ('"', "[", "{"):
        return _flow(text)
    if text[:1] == "'" and text.endswith("'"):
        return text[1:-1].replace("''", "'")
    text = text.split(" #")[0].rstrip()
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    return int(text) if re.fullmatch(r"-?(0|[1-9]\d*)", text) else text


def _flow(text: str) -> Any:
    """JSON, or a list of plain words such as [touch, /tmp/x]."""
    try:
        return json.loads(text)
    except ValueError:
        if text.startswith("[") and text.endswith("]"):
            return [_scalar(part) for part in text[1:-1].split(",") if part.strip()]
        raise ValueError(f"cannot read {text[:40]!r}") from None
