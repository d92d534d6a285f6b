"""What an earlier probe of a machine is worth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchestrator.core.errors import MachineUnfit
from orchestrator.stages.machine.interpreter import check_compiles, environment_hash, expected, is_fresh

KNOWN = {"python": "/x/bin/python", "boot_id": "b-1", "driver": "580.65"}


@pytest.mark.parametrize(
    ("facts", "fresh"),
    [
        ({"boot_id": "b-1", "driver": "580.65"}, True),
        ({"boot_id": "b-2", "driver": "580.65"}, False),
        ({"boot_id": "b-1", "driver": "581.00"}, False),
        ({"boot_id": "b-1", "driver": None}, False),
    ],
)
def test_a_probe_counts_for_its_boot_and_driver_only(facts: dict[str, str | None], fresh: bool) -> None:
    assert is_fresh(KNOWN, facts) is fresh


def test_without_a_boot_id_every_boot_is_another_one() -> None:
    assert not is_fresh({**KNOWN, "boot_id": ""}, {"boot_id": "", "driver": "580.65"})


def context_of(*, compile: bool | None, paid: bool) -> tuple[SimpleNamespace, list[str]]:
    said: list[str] = []
    recipe = SimpleNamespace(train=SimpleNamespace(compile=compile))
    host, machine = SimpleNamespace(name="box", paid=paid), SimpleNamespace(cuda=True)
    emit = lambda kind, text: said.append(f"{kind}: {text}")  # noqa: E731
    return SimpleNamespace(recipe=recipe, host=host, machine=machine, emit=emit), said


NO_COMPILER = {"compile_fault": "no C compiler: apt install gcc python3-dev (RuntimeError: x)"}


@pytest.mark.parametrize(("compile", "paid"), [(True, False), (None, True), (None, False)])
def test_a_machine_that_cannot_compile_is_said_before_data_moves(compile: bool | None, paid: bool) -> None:
    context, said = context_of(compile=compile, paid=paid)
    check_compiles(context, NO_COMPILER)  # type: ignore[arg-type]
    assert said == [
        "warning: torch.compile does not work on box: no C compiler: apt install gcc python3-dev (RuntimeError: x); "
        "the run stays uncompiled"
    ]


def test_a_paid_run_that_must_be_compiled_stops_before_data_moves() -> None:
    context, _ = context_of(compile=True, paid=True)
    with pytest.raises(MachineUnfit, match="no C compiler: apt install gcc"):
        check_compiles(context, NO_COMPILER)  # type: ignore[arg-type]


@pytest.mark.parametrize("compile", [True, None, False])
def test_an_interpreter_that_compiles_or_need_not_is_not_mentioned(compile: bool | None) -> None:
    context, said = context_of(compile=compile, paid=True)
    check_compiles(context, {"compile_fault": None} if compile is not False else NO_COMPILER)  # type: ignore[arg-type]
    check_compiles(context, {})  # type: ignore[arg-type]  # of an agent of an earlier version
    assert not said


def found(path: str, torch: str | None, *, trainer: bool = True, kind: str = "vendor") -> dict[str, object]:
    return {"path": path, "version": "3.11", "torch": torch, "trainer": trainer, "kind": kind}


HASH = environment_hash("3.11", "x86_64", None, cuda=True)
KNOWN_HERE = {HASH: {"python": "/chosen/python", "boot_id": "b-1", "driver": "580"}}
OLD = {HASH: {"python": "/chosen/python", "boot_id": "b-0", "driver": "580"}}


@pytest.mark.parametrize(
    ("there", "envs", "given", "taken"),
    [
        ([found("/v", "2.10")], {}, None, "/v"),
        ([found("/v", "2.8")], {}, None, None),
        ([found("/half", "2.13.0", trainer=False), found("/whole", "2.10")], {}, None, "/whole"),
        ([found("/half", "2.13.0", trainer=False)], {}, None, "/half"),
        ([found("/old/env", "2.11.5", kind="env"), found("/v", "2.10")], {}, None, "/v"),  # of an earlier pin
        ([found("/a/env", "2.13.0", kind="env"), found(f"/e/{HASH}/bin/python", "2.13.0", kind="env")], {}, None, HASH),
        ([found("/v", "2.10")], KNOWN_HERE, None, "/chosen/python"),
        ([found("/v", "2.10")], OLD, None, "/v"),
        ([found("/given", "2.10", kind="given"), found("/env", "2.13.0", kind="env")], {}, "/given", "/given"),
        ([], {}, None, None),
    ],
)
def test_check_computes_in_the_interpreter_that_run_takes(
    there: list[dict[str, object]], envs: dict[str, object], given: str | None, taken: str | None
) -> None:
    python = {"path": "/usr/bin/python3", "version": "3.11"}
    facts = {"interpreters": there, "envs": envs, "python": python, "arch": "x86_64", "boot_id": "b-1", "driver": "580"}
    got = expected(facts, given, cuda=True)  # type: ignore[arg-type]
    assert (got or "").find(taken or "") >= 0 and bool(got) == bool(taken)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ([found("/usr/bin/python3", "2.13.0", kind="system"), found("/opt/conda/bin/python", "2.13.0")], None),
        ([found("/v", "2.13.0"), found("/given", "2.10", kind="given")], "/given"),
        ([found("/v", "2.13.0"), found(f"/e/{HASH}/bin/python", "2.13.0", kind="env")], f"/e/{HASH}/bin/python"),
    ],
)
def test_nodes_see_of_a_login_node_what_is_given_or_built(there: list[dict[str, object]], taken: str | None) -> None:
    python = {"path": "/usr/bin/python3", "version": "3.11"}
    facts = {"interpreters": there, "envs": {}, "python": python, "arch": "x86_64", "boot_id": "b-1", "driver": None}
    given = "/given" if taken == "/given" else None
    assert expected(facts, given, cuda=True, elsewhere=True) == taken  # type: ignore[arg-type]
