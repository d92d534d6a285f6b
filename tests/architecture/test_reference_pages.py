"""The reference pages in docs/ say what the code says."""

from __future__ import annotations

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, MachineRow, Train
from orchestrator.core.config.recipe_tables.data_tables import Data, Prepare, Validation
from orchestrator.core.config.recipe_tables.model_table import Model
from orchestrator.core.config.recipe_tables.task_tables import Evaluation, Lora, Task
from orchestrator.core.config.toml_tables import Table
from tests.generate_docs import DOCS, PAGES


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_generated_page_is_up_to_date(page: str) -> None:
    assert (DOCS / page).read_text() == PAGES[page](), "run: python -m tests.generate_docs"


@pytest.mark.parametrize(
    "table", [
        HostSpec, Data, Evaluation, Limits, Lora, MachineRow, Model, Prepare, Task, Train, Validation,
    ],
)  # fmt: skip
def test_every_key_is_explained(table: type[Table]) -> None:
    assert [name for name, field in table.model_fields.items() if not field.description] == []
