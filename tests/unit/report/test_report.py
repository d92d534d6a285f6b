"""The report: what it reads from a mirror, what it writes, and that nothing on the page is invented or dangerous."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.errors import UserError
from orchestrator.core.facts.run_facts import ResumeFrom, RunFacts
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import RunRecord, StageInterval
from orchestrator.report.local_checkpoints import read_checkpoints
from orchestrator.report.metrics import read_lines, read_training
from orchestrator.report.pages import markdown
from orchestrator.report.summary import write_report
from tests.support.files.repository import REPOSITORY

RECIPES = REPOSITORY / "recipes"
HOSTILE = "a|b\n# head <script>alert(1)</script> `x` ![i](http://e) \x1b[31m\u202e é"


def metric(step: int, **changes: object) -> str:
    line = {"step": step, "tokens": step * 100, "loss": 5.0 - step / 100, "tokens_per_second": 1000.0, "mfu": 0.0}
    return json.dumps(line | {"memory_gib": 1.5, "time": step} | changes) + "\n"


def a_mirror(path: Path) -> Path:
    """What follow and fetch leave behind for a run of 100 steps."""
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(metric(step) for step in range(10, 101, 10)) + '{"step": 110, "lo')
    events = [
        {"event": "validated", "step": 50, "val_loss": 4.2}, {"event": "validated", "step": 100, "val_loss": 4.4},
        {"event": "sampled", "step": 100, "prompt": "Every effort ", "text": f"moves ```\n{HOSTILE}"},
    ]  # fmt: skip
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for step in (50, 100):
        folder = path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"w" * (1000 + step))
        files = {"model.safetensors": {"size_bytes": 1000 + step, "sha256": "0" * 64}}
        (folder / "MANIFEST.json").write_text(json.dumps({"files": files}))
    (path / "checkpoints" / ".tmp-step-000150").mkdir()
    (path / "checkpoints" / "best").symlink_to("step-000050")
    (path / "checkpoints" / "latest").symlink_to("step-000100")
    return path


def a_run(**changes: Any) -> RunRecord:
    recipe = load_recipe(str(RECIPES / "chinchilla_163m_baseline.toml"))
    plan = make_plan(recipe, None, machine_type("8xA100-40GB"), None, now=1_795_000_000.0)
    fields: dict[str, Any] = {
        "recipe_digest": recipe.digest, "recipe_data": recipe.resolved(), "plan": plan, "total_steps": 100,
        "state": State.ENDING, "outcome": Outcome.FINISHED, "started_at": 1_795_000_600.0,
    }  # fmt: skip
    fields |= {"host": "cloud", "machine": "8xA100-40GB", "created_at": 1_795_000_000.0}
    return RunRecord(id="base-1120-k3f9qa", recipe=recipe.name, **(fields | changes))


STAGES = [
    StageInterval("r", "box", "acquire", 0.0, 600.0, 600.0, 15.92),
    StageInterval("r", "box", "launch", 600.0, 660.0, 660.0, 15.92),
    StageInterval("r", "box", "away", 660.0, 4260.0, 4260.0, 15.92),
    StageInterval("r", "box", "follow", 4260.0, 7860.0, 7860.0, 15.92),
    StageInterval("r", "box", "report", 7860.0, None, 7860.0, 15.92),
]


def written(run: RunRecord, mirror: Path) -> tuple[dict[str, Any], str]:
    cost = run_cost(STAGES, machine=machine_type(run.machine), tokens=read_training(mirror).tokens)
    write_report(run, STAGES, cost, mirror)
    facts: dict[str, Any] = json.loads((mirror / "report.json").read_text(), parse_constant=pytest.fail)
    return facts, (mirror / "report.md").read_text()


def test_the_report_tells_what_the_ledger_and_the_mirror_say(tmp_path: Path) -> None:
    mirror = a_mirror(tmp_path / "run")
    facts, text = written(a_run(), mirror)
    training = facts["training"]
    assert (training["steps"], training["tokens"], training["first_loss"], training["last_loss"]) == (
        100,
        10_000,
        4.9,
        4.0,
    )
    assert (training["best_val_loss"], training["best_val_step"], training["last_val_loss"]) == (4.2, 50, 4.4)
    assert training["mfu"] is None and "| MFU (median)" not in text, "the trainer writes 0 where the peak is unknown"
    manifest = (mirror / "checkpoints/step-000050/MANIFEST.json").read_bytes()
    assert facts["checkpoints"][0] == {
        "step": 50, "name": "step-000050", "size_bytes": 1050, "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "verified": True, "best": True, "latest": False,
    }  # fmt: skip
    assert [found["step"] for found in facts["checkpoints"]] == [50, 100]
    assert facts["lost"] is None and "Lost" not in text
    for shown in ("base-1120-k3f9qa", "finished", "4.2000 (step 50)", "1.10 kB", "8xA100-40GB", "best", "latest", "▁"):
        assert shown in text


def test_money_and_hours_by_stage_and_against_the_plan(tmp_path: Path) -> None:
    mirror = a_mirror(tmp_path / "run")
    run = a_run()
    facts, text = written(run, mirror)
    cost = json.loads((mirror / "cost.json").read_text())
    total_h = 7860 / 3600
    assert cost["cost_usd"] == pytest.approx(total_h * 15.92) and cost["id"] == run.id
    assert cost["by_stage"]["away"] == pytest.approx(15.92) and cost["hours_by_stage"]["away"] == pytest.approx(1.0)
    assert cost["usd_per_billion_tokens"] == pytest.approx(cost["cost_usd"] * 1e5)
    assert cost["gpu_hours"] == pytest.approx(8 * total_h) and cost["co2e_kg"] == pytest.approx(
        cost["energy_kwh"] * cost["grid_kg_co2e_per_kwh"]
    )
    parts = {part["part"]: part for part in facts["parts"]}
    assert parts["train"]["hours"] == pytest.approx((60 + 3600 + 3600) / 3600)
    assert parts["total"]["hours"] == pytest.approx(total_h)
    assert parts["total"]["cost_usd"] == pytest.approx(cost["cost_usd"])
    assert parts["train"]["planned_hours"] == pytest.approx(run.plan and run.plan.hours.train)
    assert parts["total"]["planned_usd"] == pytest.approx(run.plan and run.plan.cost_usd.total)
    assert f"${cost['cost_usd']:.2f}" in text and "per kWh" in text


def test_the_recipe_beside_the_report_is_the_one_that_ran(tmp_path: Path) -> None:
    mirror = a_mirror(tmp_path / "a folder")
    for name in sorted(path.stem for path in RECIPES.glob("*.toml")):
        recipe = load_recipe(str(RECIPES / f"{name}.toml"), ["train.seed=7", 'description="é \\"q\\" $(x)"'])
        facts, _ = written(a_run(recipe_data=recipe.resolved(), facts=RunFacts(resume_from=ResumeFrom("/x y"))), mirror)
        tomllib.loads((mirror / "recipe.toml").read_text())
        assert load_recipe(str(mirror / "recipe.toml")).digest == recipe.digest
    assert facts["reproduce"] == f"gptctl run '{mirror}/recipe.toml' --host cloud --resume-from '/x y'"


def test_a_run_that_never_trained_has_a_report_too(tmp_path: Path) -> None:
    mirror = tmp_path / "run"
    mirror.mkdir()
    run = a_run(outcome=Outcome.NEVER_STARTED, cause="7 of 8 GPUs", plan=None, recipe_data={}, total_steps=0)
    facts, text = written(run, mirror)
    assert facts["lost"] is None and facts["checkpoints"] == [] and facts["training"]["last_loss"] is None
    assert "never\\_started (7 of 8 GPUs)" in text and "No checkpoints here." in text and "nan" not in text.lower()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("rm -r checkpoints/step-000100", "steps 51 to 100"),
        ("rm -r checkpoints", "all 100 steps"),
        ("truncate -s 5 checkpoints/step-000100/model.safetensors", "the checkpoints of step 100"),
        ("rm checkpoints/step-000050/model.safetensors", "the checkpoints of step 50"),
    ],
)
def test_what_was_lost_is_said(tmp_path: Path, damage: str, said: str) -> None:
    mirror = a_mirror(tmp_path / "run")
    subprocess.run(["bash", "-c", damage], check=True, cwd=mirror)
    facts, text = written(a_run(outcome=Outcome.FAILED), mirror)
    assert said in facts["lost"] and "**Lost**" in text


def test_hostile_words_cannot_leave_their_place(tmp_path: Path) -> None:
    mirror = a_mirror(tmp_path / "run")
    run = a_run(name=HOSTILE, note=HOSTILE, labels={HOSTILE: HOSTILE}, cause=HOSTILE, host=HOSTILE)
    _, text = written(run, mirror)
    outside = text.split("## Samples")[0]
    assert "<script>" not in outside and "![i]" not in outside and "\n# head" not in outside
    assert not any(char in text for char in "\x1b\u202e")
    assert all(line.count("|") - line.count("\\|") >= 3 for line in outside.splitlines() if line.startswith("|"))
    assert "````text\nEvery effort moves ```" in text, "the fence is longer than the one inside"


def test_writing_again_replaces_and_a_full_disk_is_a_user_error(tmp_path: Path) -> None:
    mirror = a_mirror(tmp_path / "run")
    first = written(a_run(), mirror)
    assert written(a_run(), mirror) == first
    assert {path.name for path in mirror.iterdir() if path.is_file()} == {
        "report.json", "report.md", "report.html", "cost.json", "recipe.toml", "metrics.jsonl", "events.jsonl",
    }  # fmt: skip
    assert all((mirror / name).stat().st_mode & 0o777 == 0o600 for name in ("report.json", "report.md", "cost.json"))
    (mirror / "report.md").unlink()
    (mirror / "report.md").mkdir()
    with pytest.raises(UserError, match=r"report\.md"):
        written(a_run(), mirror)


def test_torn_and_strange_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 3}\n[1]\nnull\n\xff\xfe\n\n{"step": 2, "loss": NaN}\n{"step": "3"}\n{"step": 4, "lo'
    )
    assert [row.get("step") for row in read_lines(path)] == [1, 2, "3"]
    assert read_training(tmp_path).losses == ((read_training(tmp_path).losses[0]),)
    assert read_training(tmp_path).step == 2 and read_training(tmp_path).last_loss == 3.0
    assert list(read_lines(tmp_path / "absent")) == []


def test_a_column_holds_finite_numbers_and_what_is_none_is_none(tmp_path: Path) -> None:
    huge, text = "1" + "0" * 400, ['{"step": 1, "loss": 2, "lr": 0.5}', '{"step": 2, "loss": 1e999, "lr": "x"}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*text, f'{{"step": 3, "loss": {huge}, "lr": 0.25}} ', ""]))
    training = read_training(tmp_path)
    assert training.steps == (1, 2, 3) and training.tokens == 0
    assert training.columns["loss"] == (2.0, None, None) and training.columns["lr"] == (0.5, None, 0.25)
    assert training.columns["mfu"] == (None, None, None) and training.mfu is None


def test_of_two_lines_for_a_step_the_later_counts(tmp_path: Path) -> None:
    lines = [metric(step) for step in (10, 20, 30)] + [metric(step, loss=1.0) for step in (20, 30, 40)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    losses = read_training(tmp_path).losses
    assert [(point.step, point.value) for point in losses] == [(10, 4.9), (20, 1.0), (30, 1.0), (40, 1.0)]


@given(st.lists(st.text(max_size=3000), min_size=0, max_size=12), st.booleans(), st.integers(0, 40))
def test_whole_lines_are_read_and_a_torn_one_is_not(texts: list[str], torn: bool, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        whole = "".join(json.dumps({"step": number, "text": text}) + "\n" for number, text in enumerate(texts))
        path.write_text(whole[: len(whole) - cut] if torn else whole)
        lines = list(read_lines(path))
        assert lines == [{"step": number, "text": text} for number, text in enumerate(texts)][: len(lines)]


def test_checkpoints_without_a_readable_manifest_are_not_checkpoints(tmp_path: Path) -> None:
    for number, text in enumerate(['{"files": []}', "{", '{"files": {"a": {}}}', "\x00", "[]"]):
        folder = tmp_path / f"step-{number:06d}"
        folder.mkdir()
        (folder / "MANIFEST.json").write_text(text)
    (tmp_path / "step-000009").mkdir()
    assert read_checkpoints(tmp_path) == [] and read_checkpoints(tmp_path / "absent") == []


@given(st.lists(st.floats(-1e9, 1e9), max_size=300))
def test_a_sparkline_fits_and_shows_the_extremes(values: list[float]) -> None:
    bars = markdown.spark([(index, value) for index, value in enumerate(values)])
    assert len(bars) == (min(len(values), 60) if len(values) >= 2 else 0)
    if len(values) in range(2, 61) and max(values) > min(values):
        assert bars[values.index(max(values))] == "█" and bars[values.index(min(values))] == "▁"
