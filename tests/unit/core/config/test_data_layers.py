"""data.source and [data.prepare]: one of them, and the layer above decides which."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.errors import UserError

SOURCE = 'name = "a"\n[data]\nsource = "tokens"\n'
PREPARE = 'name = "a"\n[data.prepare]\nsource = "text.txt"\n'
BELOW = 'extends = "below.toml"\n'


def test_both_in_one_file_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(SOURCE + '[data.prepare]\nsource = "text.txt"\n')
    with pytest.raises(UserError, match=r"a\.toml: it sets data\.source and \[data\.prepare\]"):
        load_recipe(str(tmp_path / "a.toml"))


@pytest.mark.parametrize(("below", "above"), [(SOURCE, PREPARE), (PREPARE, SOURCE)])
def test_the_file_above_replaces_the_other(tmp_path: Path, below: str, above: str) -> None:
    (tmp_path / "below.toml").write_text(below)
    (tmp_path / "above.toml").write_text(BELOW + above)
    data = load_recipe(str(tmp_path / "above.toml")).data
    assert (data.source is None) == (above is PREPARE) and (data.prepare is None) == (above is SOURCE)


def test_a_set_value_replaces_the_other(tmp_path: Path) -> None:
    (tmp_path / "source.toml").write_text(SOURCE)
    (tmp_path / "prepare.toml").write_text(PREPARE)
    data = load_recipe(str(tmp_path / "prepare.toml"), ["data.source=mine"]).data
    assert data.source == "mine" and data.prepare is None
    data = load_recipe(str(tmp_path / "source.toml"), ["data.prepare.source=mine.txt"]).data
    assert data.source is None and data.prepare is not None and data.prepare.source == "mine.txt"
    kept = load_recipe(str(tmp_path / "prepare.toml"), ["data.prepare.documents=5", "data.tokens=100"]).data
    assert kept.prepare is not None and (kept.prepare.source, kept.prepare.documents) == ("text.txt", 5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[data.prepare]\ntokens = 5\n", "needs `source`, or tables"),
        ('[[data.prepare.mix]]\nsource = "a"\nweight = 1.0\n', "a mixture needs `tokens`"),
        (
            '[data.prepare]\nsource = "a"\ntokens = 9\n[[data.prepare.mix]]\nsource = "a"\nweight = 1.0\n',
            "needs `source`, or",
        ),
        ('[data.prepare]\ntokens = 9\n[[data.prepare.mix]]\nsource = "a"\nweight = 0.0\n', "greater than 0"),
    ],
)
def test_half_a_mixture_is_refused(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(f'name = "a"\n{table}')
    with pytest.raises(UserError, match=message):
        load_recipe(str(tmp_path / "a.toml"))
