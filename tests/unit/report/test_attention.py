"""Attention as a picture and a page: what is drawn is what was measured."""

import io

from PIL import Image

from orchestrator.report.pages.attention import AttentionWeights, page, picture

CELLS = bytes([255, 0, 51, 204, 255, 0, 0, 255, 255, 0, 255, 0, 255, 0, 128, 127])
WEIGHTS = AttentionWeights(("a", " <b>"), layers=2, heads=2, cells=CELLS)


def test_the_picture_has_every_head_where_it_belongs() -> None:
    image = Image.open(io.BytesIO(picture(WEIGHTS)))
    assert image.size == (2 * 96 + 6, 2 * 96 + 6)
    places = {(x, y): image.getpixel((x, y)) for x in (10, 80, 112, 182) for y in (10, 80, 112, 182)}
    assert [places[x, 80] for x in (10, 80, 112, 182)] == [51, 204, 0, 255]
    assert [places[x, 182] for x in (10, 80, 112, 182)] == [255, 0, 128, 127]
    assert image.convert("RGB").getpixel((10, 10)) == (0x0B, 0x3D, 0x91)
    assert image.convert("RGB").getpixel((98, 98)) == (255, 255, 255)


def test_the_page_escapes_tokens_and_says_where_heads_look() -> None:
    text = page(WEIGHTS, "<run>", "")
    assert "&lt;run&gt;" in text
    assert "\u00b7&lt;b&gt;" in text
    assert "20.0% \u00b7 20.0% \u00b7 80.0%" in text
    assert text.count("data:image/png;base64,") == 4
    assert 'src="http' not in text


def test_one_token_looks_at_itself() -> None:
    assert "100.0% \u00b7 100.0% \u00b7 100.0%" in page(AttentionWeights(("a",), 1, 1, bytes([255])), "x", "note")
