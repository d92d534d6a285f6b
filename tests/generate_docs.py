"""Writes the reference pages that are made from the code: `python -m tests.generate_docs`.

tests/architecture/test_reference_pages.py fails while a page in docs/ differs from what this makes.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.config.settings import Settings
from orchestrator.core.config.slurm_table import SlurmSpec
from orchestrator.core.config.toml_tables import Table
from orchestrator.core.machines import all_machine_types, assumed, bundled_offers
from tests.scale_page import scale_page

DOCS = Path(__file__).resolve().parent.parent / "docs" / "reference"
MADE = "<!-- made by python -m tests.generate_docs -->\n"
SET_BY_GPTCTL = {"HostSpec": {"name", "peers"}}
RENTED = {"regions", "image", "host_key", "guard", "checkpoint_store", "endpoint", "max_price_per_hour_usd"}
_OF_DATA = {"data", "task"}
SANITY_BOUND = 100_000
"""Bounds from here on only catch slips of the keyboard; the page leaves them out."""


def recipe_page() -> str:
    """docs/reference/recipe.md"""
    return (
        MADE
        + """
# Recipe reference

A recipe is a TOML file that says what to train and how far, without hosts and secrets. `gptctl plan NAME` checks it.

- `extends = "other.toml"` at the top lays this file over another one: tables merge key by key, the rest is replaced.
- `--set train.seed=7` overrides one value; quote a name with dots: `--set 'machines."8xH100".micro_batch=12'`.
- The token count is always rounded up to a whole global batch, and nothing but `micro_batch` depends on the machine.
"""
        + "\n[What to train on](recipe-data.md), `[data]` and `[task]`, has a page of its own.\n"
        + _sections(Recipe, "", _OF_DATA)
    )


def recipe_data_page() -> str:
    """docs/reference/recipe-data.md"""
    return (
        MADE
        + """
# Recipe reference: data and tasks

The tables of a [recipe](recipe.md) that say what it trains on, and for what.
"""
        + "".join(_section(name, inner, "") for name, inner in _inner_tables(Recipe) if name in _OF_DATA)
    )


def inventory_page() -> str:
    """docs/reference/inventory.md"""
    return (
        MADE
        + """
# Inventory reference

`inventory.toml` lists the machines you train on, one table `[hosts.NAME]` each. gptctl reads `--inventory FILE`, else
`./inventory.toml`, else the one in `GPTCTL_HOME`. Host `local`, the machine you type on, always exists: its GPUs from
nvidia-smi, else two CPU processes, price 0 unless the file sets one. Secrets do not belong here: keys that look like
one are refused.

```toml
[hosts.home-3090]
machine = "1x3090"
address = "192.168.1.20"
user = "me"
ssh_key = "~/.ssh/home"
price_per_hour_usd = 0.11
```

## [hosts.NAME]
"""
        + _table(HostSpec, HostSpec.model_fields.keys() - RENTED)
        + """
For rented machines:
"""
        + _table(HostSpec, RENTED)
        + "\n## [hosts.NAME.slurm]\n\nFor a host of provider `slurm`; see [Slurm](../guides/slurm.md).\n"
        + _table(SlurmSpec, SlurmSpec.model_fields.keys())
        + _machines()
    )


def config_page() -> str:
    """docs/reference/config.md"""
    return (
        MADE
        + """
# Settings reference

`config.toml` in `GPTCTL_HOME` holds what is yours and the same for every run. It may be missing. No secret belongs in
it: an address that holds one is written `"env:NAME"`, and the variable NAME holds the address.

```toml
[limits]
max_usd_per_month = 200

[notify]                                         # pip install 'gptctl[notify]' for urls; a command needs nothing
urls = [
  "ntfys://ntfy.sh/a-topic-nobody-guesses",      # ntfy: the topic is all that protects it
  "env:TELEGRAM_URL",                            # export TELEGRAM_URL=tgram://BOT_TOKEN/CHAT_ID
  "env:SLACK_URL",                               # export SLACK_URL=https://hooks.slack.com/services/A/B/C
  "https://example.com/hook",                    # any other webhook gets JSON: title, message, type
]
command = ["notify-send", "{title}", "{text}"]
events = ["finished", "failed", "still-billing"]

[watcher]
ping_url = "env:HEALTHCHECK_URL"
```

`gptctl notify` shows whom it would tell, `gptctl notify --test` tells them. A run tells each thing once; who cannot be
reached is a warning, never the end of a run. Other services: https://appriseit.com/services.
"""
        + "".join(
            f"\n## [{name}]\n{inspect.getdoc(inner)}\n" + _table(inner) for name, inner in _inner_tables(Settings)
        )
    )


def decisions_page() -> str:
    """docs/decisions/index.md: every decision by its title, newest first."""
    rows = []
    for path in sorted((DOCS.parent / "decisions").glob("0*.md"), reverse=True):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        number = path.name[:4]
        rows.append(f"| [{number}]({path.name}) | {re.sub(r'^[0-9]+[.] ', '', title)} |")
    return (
        MADE
        + """
# Decisions

Where building showed a design wrong, or where gptctl does not take the obvious way, ten lines say why: the context, the
choice, and what was rejected.

| | decision |
|---|---|
"""
        + "\n".join(rows)
        + "\n"
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "../decisions/index.md": decisions_page,
    "../concepts/scale.md": scale_page,
    "recipe.md": recipe_page,
    "recipe-data.md": recipe_data_page,
    "inventory.md": inventory_page,
    "config.md": config_page,
}


def _sections(model: type[Table], prefix: str, without: Set[str] = frozenset()) -> str:
    """The table's own keys, then a section per table inside it."""
    inner = ((name, table) for name, table in _inner_tables(model) if name not in without)
    return _table(model) + "".join(_section(name, table, prefix, model) for name, table in inner)


def _section(name: str, inner: type[Table], prefix: str, model: type[Table] = Recipe) -> str:
    by_name = model.model_json_schema()["properties"][name].get("type") == "object"
    path = f"{prefix}{name}" + ('."8xA100-40GB"' if by_name else "")
    return f"\n## [{path}]\n{inspect.getdoc(inner)}\n" + _sections(inner, f"{path}.")


def _table(model: type[Table], only: Set[str] | None = None) -> str:
    schema = model.model_json_schema()
    inner = {name for name, _ in _inner_tables(model)} | SET_BY_GPTCTL.get(model.__name__, set())
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(schema, name, field)} | {_one_line(field.get('description', ''))} |"
        for name, field in schema["properties"].items()
        if name not in inner and (only is None or name in only)
    ]
    return "\n| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _inner_tables(model: type[Table]) -> Iterator[tuple[str, type[Table]]]:
    for name, field in model.model_fields.items():
        arguments = (field.annotation, *typing.get_args(field.annotation))
        found = [kind for kind in arguments if isinstance(kind, type) and issubclass(kind, Table)]
        if found:
            yield name, found[0]


def _kind(field: Mapping[str, Any]) -> str:
    """`integer, at least 1` from a JSON schema; the branch for an absent value is left out."""
    if "anyOf" in field:
        return " or ".join(_kind(part) for part in field["anyOf"] if part.get("type") != "null")
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if field["type"] == "array":
        inner = field.get("items") or field["prefixItems"][0]
        return f"list of ({_kind(inner)})"
    words = {"boolean": "true or false"}
    return ", ".join([words.get(field["type"], field["type"]), *_bounds(field)])


def _bounds(field: Mapping[str, Any]) -> Iterator[str]:
    texts = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    for key, text in texts.items():
        if key in field and field[key] < SANITY_BOUND:
            yield f"{text} {field[key]:,g}"


def _default(schema: Mapping[str, Any], name: str, field: Mapping[str, Any]) -> str:
    if name in schema.get("required", ()):
        return "required"
    value = field.get("default")
    return "none" if value is None or value in ([], "") else f"`{json.dumps(value)}`"


def _machines() -> str:
    """The machine types with their bundled prices."""
    rows = []
    for machine in all_machine_types():
        offers = "; ".join(
            f"{offer.provider} ${offer.price_per_hour_usd:,.2f} ({offer.source.removeprefix('bundled ')})"
            for offer in bundled_offers(machine.name)
        )
        card = machine.gpu
        assert card is not None
        peak = card.peak_flops("bf16") / 1e12
        rows.append(
            f"| `{machine.name}` | {card.name} | {card.memory_gib:g} GiB | {peak:g} | {card.tdp_w:g} W | {offers} |"
        )
    return (
        """
## Machine types

Another number of a known card works too (`2x4090`), `2xCPU` means two processes without a GPU, and `1xGPU-24GB` is any
other card of that memory. Prices are USD per hour before tax, last known on the day in brackets; the price that counts
is the one quoted at launch.

| machine | card | memory | peak bf16 or fp16 TFLOP/s | power | last known price per hour |
|---|---|---|---|---|---|
"""
        + "\n".join(rows)
        + f"\n\nCO2e is computed with {assumed().grid_kg_co2e_per_kwh:g} kg per kWh"
        + " unless `grid_kg_co2e_per_kwh` says otherwise.\n"
    )


if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make())
        print(f"docs/reference/{page}")
