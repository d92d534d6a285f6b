"""The history of a model: which run or import it began from, how many tokens of each source it has seen, and the
commands that make it again, from the first to the last. Pure; the ledger's records come in.

    lineage_of(run, plan)["before"]            # for config.json, and from there for every checkpoint's meta.json
    part(run, ancestors, spent_usd).words      # "continued from a-1120-k3f9qa at step 600: 1,200 tokens of A, 800 of B"
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from orchestrator.core.errors import UserError
from orchestrator.core.facts.origin import IMPORTED, RESUMED, Lineage, Origin, SourceTokens, added
from orchestrator.core.planning.plan import Plan
from orchestrator.core.typed_json import encode
from orchestrator.ledger.records import RunRecord
from orchestrator.report.data_source import data_read, shown_source, source_name
from orchestrator.report.run_report import LineagePart

MOST_ANCESTORS = 50
RecipeOf = Callable[[RunRecord], str]
"""The file of a run's recipe, as a command names it."""


def lineage_of(run: RunRecord, plan: Plan) -> dict[str, object]:
    """What every checkpoint of the run carries. Names no private folder."""
    origin = run.facts.origin
    public = replace(origin, place=shown_source(origin.place), seen=()) if origin else None
    found = Lineage(
        source_name(run.recipe_data),
        plan.from_step,
        origin.seen if origin else (),
        public,
        data=data_read(run.recipe_data),
    )
    return {key: value for key, value in encode(found).items() if key != "own_tokens"}


def seen_by(run: RunRecord) -> tuple[SourceTokens, ...]:
    """Tokens of every source, those of its ancestors too, oldest first."""
    origin = run.facts.origin
    own = SourceTokens(source_name(run.recipe_data), run.tokens_trained)
    return added(origin.seen if origin else (), [own])


def ancestors(run: RunRecord, find: Callable[[str], RunRecord]) -> tuple[RunRecord, ...]:
    """The runs and imports that its weights went through, oldest first, as far as `find` knows them."""
    found: list[RunRecord] = []
    origin = run.facts.origin
    while origin is not None and origin.run is not None and len(found) < MOST_ANCESTORS:
        try:
            parent = find(origin.run)
        except UserError:
            break
        found.insert(0, parent)
        origin = parent.facts.origin
    return tuple(found)


def descends_from(run: RunRecord) -> str | None:
    """The sha256 of the trained weights that a run began with; None for one that began from random ones, and for an
    import, which is compared as it is."""
    origin = run.facts.origin
    return None if origin is None or origin.imported else origin.sha256 or origin.place


def part(run: RunRecord, before: Sequence[RunRecord], own_usd: float, recipe_of: RecipeOf) -> LineagePart:
    """The report's part about where the model comes from. `before`: its ancestors."""
    return LineagePart(
        origin=run.facts.origin,
        words=words(run),
        seen=seen_by(run),
        own_tokens=run.tokens_trained,
        own_usd=own_usd,
        commands=commands([*before, run], recipe_of),
    )


def words(run: RunRecord) -> str | None:
    """One sentence for people; None for a model that was trained from scratch."""
    origin = run.facts.origin
    if origin is None:
        return None
    if origin.how == IMPORTED:
        return f"imported from {shown_source(origin.place)} ({origin.layout})"
    verb = "continued from" if origin.how == RESUMED else "initialised with the weights of"
    tokens = ", ".join(f"{each.tokens:,} tokens of {each.source}" for each in seen_by(run))
    unknown = "" if origin.seen else " (what it had seen before is unknown)"
    return f"{verb} {origin_name(origin)} at step {origin.step:,}: {tokens}{unknown}"


def origin_name(origin: Origin) -> str:
    """The run, else the model's id on the Hub, else the last part of its place."""
    return origin.run or origin.base_model or shown_source(origin.place)


def commands(runs: Sequence[RunRecord], recipe_of: RecipeOf) -> tuple[str, ...]:
    """What makes the last of them again, each step with a name that the next one uses."""
    lines: list[str] = []
    for number, run in enumerate(runs, start=1):
        following = runs[number].facts.origin if number < len(runs) else None
        lines += _command(run, number, recipe_of(run), following)
    return tuple(lines)


def _command(run: RunRecord, number: int, recipe: str, following: Origin | None) -> list[str]:
    origin, name = run.facts.origin, f"again-{number}"
    naming = ["--name", name] if following else []
    if origin is not None and origin.imported:
        return [shlex.join(["gptctl", "import", shown_source(origin.place), *naming])]
    more: list[str] = []
    known = number > 1
    if origin is not None and not origin.imported:
        place = f"again-{number - 1}@{origin.step}" if known else shown_source(origin.place)
        more = ["--resume-from", place] if origin.how == RESUMED else ["--set", f"model.init_from={place}"]
    lines = []
    keeps = following is not None and following.step != run.total_steps
    if keeps and following is not None:
        more += ["--set", f"train.keep_every={following.step}"]
    lines.append(shlex.join(["gptctl", "run", recipe, "--host", run.host, *naming, *more]))
    if keeps and following is not None:
        lines.append(shlex.join(["gptctl", "fetch", name, "--step", str(following.step)]))
    return lines
