"""Attention weights as a picture and a page: one square per head, layers as rows. Standard library and the templates.

It must not know how the weights were measured. A square's row is a token, its column the token that it looks at.

Example::

    weights = AttentionWeights(tokens=("def", " f"), layers=1, heads=1, cells=bytes([255, 0, 51, 204]))
    Path("attention.png").write_bytes(picture(weights)); page(weights, "quickstart", "def f")
"""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

from orchestrator.report.pages.html import render

SQUARE_PIXELS = 96
"""At least; every cell has whole pixels."""
GAP_PIXELS = 6
PAPER = 0
"""Of the palette: no attention."""


@dataclass(frozen=True)
class AttentionWeights:
    """`cells` is uint8 (layers, heads, tokens, tokens): 255 is all of a token's attention."""

    tokens: tuple[str, ...]
    layers: int
    heads: int
    cells: bytes

    def square(self, layer: int, head: int) -> list[bytes]:
        """The rows of one head."""
        count = len(self.tokens)
        start = (layer * self.heads + head) * count * count
        return [self.cells[start + row * count :][:count] for row in range(count)]


@dataclass(frozen=True)
class Head:
    """One head on the page: its picture, and what share of its attention goes where, as a mean over tokens."""

    number: int
    image: str
    to_first: float
    to_previous: float
    to_itself: float


def picture(weights: AttentionWeights) -> bytes:
    """A PNG file: layers from top to bottom, heads from left to right."""
    scale = max(1, SQUARE_PIXELS // len(weights.tokens))
    side = scale * len(weights.tokens)
    width = weights.heads * (side + GAP_PIXELS) - GAP_PIXELS
    rows: list[bytes] = []
    for layer in range(weights.layers):
        squares = [weights.square(layer, head) for head in range(weights.heads)]
        for line in zip(*squares, strict=True):
            row = bytes(GAP_PIXELS).join(_wide(part, scale) for part in line)
            rows += [row] * scale
        rows += [bytes(width)] * (GAP_PIXELS if layer + 1 < weights.layers else 0)
    return png(rows)


def page(weights: AttentionWeights, title: str, note: str) -> str:
    """One HTML file with every head, and where each token looks most."""
    layers = [
        (layer, [_head(weights, layer, head) for head in range(weights.heads)]) for layer in range(weights.layers)
    ]
    return render(
        "attention.html.j2",
        {"title": title, "note": note, "tokens": [_shown(text) for text in weights.tokens], "layers": layers},
        (),
    )


def _head(weights: AttentionWeights, layer: int, head: int) -> Head:
    rows = weights.square(layer, head)
    image = base64.b64encode(png(rows)).decode()
    later = rows[1:] or rows  # the first token can only look at itself
    count = 255 * len(later)
    return Head(
        head,
        f"data:image/png;base64,{image}",
        sum(row[0] for row in later) / count,
        sum(row[max(place - 1, 0)] for place, row in enumerate(later, start=len(rows) - len(later))) / count,
        sum(row[place] for place, row in enumerate(later, start=len(rows) - len(later))) / count,
    )


def _shown(text: str) -> str:
    """A token with its white space visible."""
    return text.replace(" ", "\u00b7").replace("\n", "\u23ce").replace("\t", "\u21e5") or "\u2205"


def _wide(row: bytes, scale: int) -> bytes:
    return b"".join(bytes([value]) * scale for value in row)


def png(rows: list[bytes]) -> bytes:
    """An image of 256 colours, from white to the pages' blue; a row is one byte per pixel (RFC 2083)."""
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    colors = b"".join(
        bytes(255 - value * (255 - channel) // 255 for channel in (0x0B, 0x3D, 0x91)) for value in range(256)
    )
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    parts = ((b"IHDR", head), (b"PLTE", colors), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, parts))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    name, data = part
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
