"""`gptctl data prepare`: turns text into token files, by the trainer's own program on this computer.

Example::

    prepare(Wish(["book.txt"], (), "bytes", "safetensors", ...), Path("data/book"), as_json=False)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.data.over_hosts import Job, number_of_shards, prepare_over
from orchestrator.cli.data.program import run_program
from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen.screen import show_progress, show_table, talk
from orchestrator.cli.screen.tables import Column
from orchestrator.core.config.inventory import HostSpec, load_inventory
from orchestrator.core.errors import UserError
from orchestrator.core.formats import count, percent, size
from orchestrator.datasets.downloads import Text, bring_here, bring_text
from orchestrator.remote.transfer_progress import Transfer
from trainer.layout.train_or_validation import is_token_file

PYTHON_STDLIB = "python-stdlib"
MOST_WEIGHT = 1_000_000
MOST_SHARDS = 99_999


@dataclass(frozen=True)
class Wish:
    """What you typed after `gptctl data prepare`."""

    sources: Sequence[str]
    mix: Sequence[str]
    """SOURCE=WEIGHT each: a mixture, instead of sources."""
    tokens: int | None
    exclude: str | None
    tokenizer: str
    kind: str
    column: str
    separator: str
    documents: int | None
    hold_out_every: int
    shard_tokens: int
    workers: int | None
    invalid: str
    shard: str | None = None
    """I/N: only this one."""
    hosts: Sequence[str] = ()
    """Of the inventory, to prepare on."""
    shards: int | None = None
    """How many, over hosts."""

    def settings(self) -> list[str]:
        """Arguments of trainer.prepare that decide the bytes, beside the text."""
        numbers = {
            "--tokens": self.tokens,
            "--documents": self.documents,
            "--hold-out-every": self.hold_out_every,
            "--shard-tokens": self.shard_tokens,
        }
        return [
            f"--tokenizer={self.tokenizer}",
            f"--format={self.kind}",
            f"--column={self.column}",
            f"--separator={self.separator}",
            f"--invalid={self.invalid}",
            *(f"{name}={value}" for name, value in numbers.items() if value is not None),
        ]

    def arguments(self, to: Path) -> list[str]:
        """All of them, without the text. Paths are absolute, because the program starts elsewhere."""
        workers = [f"--workers={self.workers}"] if self.workers is not None else []
        return [*self.settings(), *workers, f"--to={to.absolute()}"]


def prepare(wish: Wish, to: Path, inventory: Path | None, *, as_json: bool) -> int:
    """Prepares, and prints dataset.json's content (`--json`: with the folder as `to`)."""
    if wish.shard is not None:
        return _one_shard(wish, to, as_json=as_json)
    weights = _weights(wish)
    excluded = [f"--exclude={tokens_here(wish.exclude)}", f"--excluded-name={wish.exclude}"] if wish.exclude else []
    texts = _mixed(weights, wish.column) if weights else _named(wish.sources)
    if wish.hosts:
        _refuse_limits(wish)
        home = open_home()
        known = load_inventory(inventory, home)
        hosts = [_able(known.host(name)) for name in wish.hosts]
        shards = wish.shards or number_of_shards(to, len(hosts))
        prepare_over(hosts, Job(texts, wish.settings(), wish.workers, to, shards, home))
        return _told(to, {}, as_json=as_json)
    return _told(to, run_program("prepare", [*texts, *excluded, *wish.arguments(to)]), as_json=as_json)


def merge(to: Path, *, as_json: bool) -> int:
    """Makes the dataset of the folder's shards. Raises UserError that names what is missing or broken."""
    if (to / "dataset.json").is_file() and not (to / "shards").is_dir():
        return _told(to, {"event": "unchanged"}, as_json=as_json)
    return _told(to, run_program("prepare", ["--merge", f"--to={to.absolute()}"]), as_json=as_json)


def _one_shard(wish: Wish, to: Path, *, as_json: bool) -> int:
    """Makes one shard in the folder's `shards`."""
    shard = _shard(wish.shard or "")
    if wish.hosts or wish.shards:
        raise UserError("--shard makes one shard here, --hosts makes them all", "omit one of the two")
    _refuse_limits(wish)
    last = run_program("prepare", [*_named(wish.sources), *wish.arguments(to), f"--shard={shard}"])
    found = {"to": str(to), "shard": shard, "unchanged": last.get("event") == "unchanged"}
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"{'unchanged' if found['unchanged'] else 'prepared'}: shard {shard} of {to}")
    print(f"next: once all shards are there, gptctl data merge {to}")
    return 0


def _shard(text: str) -> str:
    """`3/8`. Raises UserError for anything else."""
    shard, _, of = text.partition("/")
    if not (shard.isascii() and shard.isdigit() and of.isascii() and of.isdigit()):
        raise UserError(f"--shard {text}: not a shard and their number", "for example --shard 3/8")
    if not 1 <= int(shard) <= int(of) <= MOST_SHARDS:
        raise UserError(f"--shard {text}: shards count from 1 to their number", f"for example --shard 1/{of or 8}")
    return f"{int(shard)}/{int(of)}"


def _refuse_limits(wish: Wish) -> None:
    """Raises UserError for what counts documents from the first one on."""
    if wish.mix or wish.tokens or wish.documents or wish.exclude or list(wish.sources) == [PYTHON_STDLIB]:
        raise UserError(
            "shards take all documents of plain sources: --mix, --tokens, --documents and --exclude choose them one "
            "after the other",
            "omit --shard and --hosts, or those",
        )


def _able(host: HostSpec) -> HostSpec:
    """A host that is there already. Raises UserError for one that must be rented first, and for several nodes."""
    if host.paid:
        raise UserError(f"{host.name} has to be rented first", "name hosts of provider ssh, slurm or local")
    if host.other_nodes:
        raise UserError(f"{host.name} is several nodes", "name the host of each node")
    return host


def _told(to: Path, last: dict[str, Any], *, as_json: bool) -> int:
    dataset = json.loads((to / "dataset.json").read_text())
    if as_json:
        print(json.dumps({"to": str(to), "unchanged": last.get("event") == "unchanged", **dataset}, indent=1))
        return 0
    _show(dataset, to, unchanged=last.get("event") == "unchanged")
    return 0


def _weights(wish: Wish) -> list[tuple[str, float]]:
    """The sources of a mixture with their weights; none for plain sources. Raises UserError: not both, and how."""
    if bool(wish.sources) == bool(wish.mix):
        raise UserError("name the text: SOURCE..., or --mix SOURCE=WEIGHT for each source of a mixture")
    if wish.mix and wish.tokens is None:
        raise UserError("a mixture needs its budget", "add --tokens N, such as --tokens 2000000000")
    if wish.mix and wish.documents is not None:
        raise UserError("--documents limits one source; a mixture has --tokens", "omit --documents")
    return [_weight(each) for each in wish.mix]


def _weight(text: str) -> tuple[str, float]:
    """`books/*.txt=0.3`: the last `=` parts them."""
    source, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not source or not 0 < weight <= MOST_WEIGHT:
        raise UserError(f"--mix {text}: not a source and its weight", "for example --mix 'books/*.txt=0.3'")
    return source, weight


def _named(sources: Sequence[str]) -> list[str]:
    """Arguments that say where plain sources are on this computer, and what they are called."""
    found = find(sources)
    paths = [f"--source={path}" for path in found.paths]
    return [*paths, f"--named={' '.join(sources)}", *([f"--revision={found.revision}"] if found.revision else [])]


def _mixed(weights: Sequence[tuple[str, float]], column: str) -> list[str]:
    """The same for a mixture."""
    arguments = []
    for source, weight in weights:
        found = find([source])
        values = {"source": source, "weight": weight, "paths": list(found.paths), "column": column}
        arguments.append(f"--mix={json.dumps({**values, 'revision': found.revision or None})}")
    return arguments


def find(sources: Sequence[str]) -> Text:
    """Paths of this computer for all sources; data from elsewhere is downloaded first, once per content."""
    found = [_find(source) for source in sources]
    revisions = " ".join(each.revision for each in found if each.revision)
    return Text([path for each in found for path in each.paths], revisions)


def _find(source: str) -> Text:
    if source == PYTHON_STDLIB:
        return Text([source])
    if "://" not in source:
        return Text([os.path.abspath(Path(source).expanduser())])
    with show_progress() as show:
        return bring_text(open_home(), source, lambda moved: show(show_download(moved)), talk)


def tokens_here(source: str) -> Path:
    """Where these token files are on this computer; those from elsewhere are downloaded first, once per content."""
    if "://" not in source:
        return Path(source).expanduser().absolute()
    with show_progress() as show:
        files = bring_here(
            open_home(),
            source,
            lambda moved: show(show_download(moved)),
            lambda name: is_token_file(name) or name.endswith("dataset.json"),
        )
    tokens = [each for each in files if is_token_file(each.name)]
    if not tokens:
        raise UserError(
            f"{source} has no token file", "name a folder or a file of tokens; for text: gptctl data prepare"
        )
    return tokens[0] if len(tokens) == 1 else tokens[0].parent


def show_download(moved: Transfer) -> dict[str, object]:
    """The fields of a progress line."""
    return {
        "what": "download",
        "done": moved.bytes_done,
        "total": moved.bytes_total,
        "unit": "bytes",
        "rate": moved.rate_bytes_per_s,
        "eta_s": moved.eta_s,
    }


def held_out_words(dataset: dict[str, Any]) -> str:
    """How many documents are for validation; without any, what a run does."""
    held_out, every = dataset["split"].get("held_out", 0), dataset["split"]["held_out_every"]
    if held_out:
        return f"held out for validation: {held_out:,} of {dataset['documents']:,} documents"
    why = f"none of {dataset['documents']:,} documents has a hash that falls there" if every else "as you asked"
    why = "it is one document" if dataset["documents"] == 1 else why
    return f"held out for validation: nothing ({why}); a run validates on the end of its training tokens"


def _show(dataset: dict[str, Any], to: Path, *, unchanged: bool) -> None:
    rows = [
        (name, f"{entry['documents']:,}", f"{entry['tokens']:,}", size(entry["size_bytes"]))
        for name, entry in dataset["files"].items()
    ]
    show_table((Column("file"), Column("documents", True, 1), Column("tokens", True), Column("size", True)), rows)
    print(
        f"{'unchanged' if unchanged else 'prepared'}: {to} holds {count(dataset['tokens'])} tokens of "
        f"{dataset['tokenizer']} ({dataset['vocab_size']:,} ids, {dataset['format']}, {dataset['dtype']})"
    )
    print(held_out_words(dataset))
    for each in dataset.get("mixture", ()):
        talk(f"{each['source']}: {percent(each['share'])} of the tokens, {each['documents']:,} documents")
    if left_out := dataset.get("excluded"):
        print(f"left out: {left_out['documents']:,} documents that {left_out['source']} has")
    skipped = dataset["skipped"]
    if skipped["invalid_utf8"]:
        print(f"not UTF-8: {skipped['invalid_utf8']:,} ({skipped['policy']})")
    print(f'next: gptctl data inspect {to}, or in a recipe: data.source = "{to}"')
