"""What an earlier probe of a machine is worth."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchestrator.core.errors import MachineUnfit
from orchestrator.stages.machine.interpreter import check_compiles, is_fresh

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
