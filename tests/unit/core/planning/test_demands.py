"""What a run demands before it trains: the environment to download, by driver and card, and main memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent.contract import torch_builds
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.machines import all_machine_types, machine_type
from orchestrator.core.planning import demands
from orchestrator.core.planning.batch import choose_batch
from orchestrator.core.planning.forecast import bytes_per_token
from tests.support.files.repository import REPOSITORY
from trainer.arithmetic import GIB, checkpoint_bytes
from trainer.arithmetic.host_memory import Shares, host_memory
from trainer.contract import ModelConfig

RECIPES = REPOSITORY / "recipes"
DRIVERS = [str(number) for number in range(470, 620, 5)]


@given(st.lists(st.sampled_from([(6, 1), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]), max_size=3))
def test_the_builds_that_a_plan_names_are_those_that_some_driver_gets(cards: list[tuple[int, int]]) -> None:
    chosen = set()
    for driver in DRIVERS:
        try:
            chosen.add(torch_builds.choose(driver, cards))
        except ValueError:
            continue
    assert set(torch_builds.possible(cards)) == chosen


def test_every_card_that_gptctl_knows_has_a_build() -> None:
    for machine in all_machine_types():
        if machine.gpu and machine.cuda:
            assert machine.gpu.capability is not None
            assert torch_builds.possible([machine.gpu.capability])


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            "8xA100-40GB",
            "torch 2.13.0+cu130 or 2.13.0+cu126, by the driver: 2.00 GB to 2.90 GB to download, 1m 12s",
        ),
        ("1x5090", "torch 2.13.0+cu130 or 2.11.0+cu128, by the driver: 2.00 GB to 3.20 GB to download, 1m 20s"),
        ("2xCPU", "torch 2.13.0+cpu: 200.00 MB to download, 5s"),
    ],
)
def test_what_a_machine_without_an_environment_downloads(machine: str, words: str) -> None:
    wanted = demands.install(None, machine_type(machine))
    assert wanted is not None
    assert demands.install_words(wanted) == words + ", where no interpreter serves"


def test_a_given_interpreter_is_not_installed_again() -> None:
    assert demands.install(HostSpec(name="box", machine="1x3090", python="/opt/python"), machine_type("1x3090")) is None


def test_memory_of_the_reference_job() -> None:
    recipe = load_recipe("chinchilla_163m", search=[RECIPES])
    machine = machine_type("8xA100-40GB")
    needed = demands.memory(recipe, machine, choose_batch(recipe, machine))
    assert needed.total_bytes == 8 * needed.process_bytes + needed.checkpoint_bytes
    assert 2.5 < needed.process_bytes / GIB < 3.5
    assert needed.checkpoint_bytes / GIB == 2.0  # 1.96 GB in pinned blocks of 256 MiB
    assert "8 x " in demands.memory_words(needed, 8)


@given(st.integers(1, 8), st.integers(1, 32), st.booleans(), st.sampled_from(["adamw", "muon"]))
def test_memory_grows_with_ranks_and_holds_the_checkpoint(ranks: int, micro: int, on_gpu: bool, optimizer: str) -> None:
    shares, model = Shares(ranks, micro, on_gpu, optimizer=optimizer), ModelConfig(n_layer=2)
    found = host_memory(model, shares)
    assert found.checkpoint_bytes >= checkpoint_bytes(model, optimizer)
    assert host_memory(model, shares._replace(ranks=ranks + 1)).total_bytes > found.total_bytes


@pytest.mark.parametrize(("vocabulary", "size"), [(257, 2), (50_257, 2), (65_536, 2), (65_537, 4), (200_000, 4)])
def test_the_size_of_tokens_follows_the_vocabulary(vocabulary: int, size: int) -> None:
    recipe = load_recipe("quickstart", search=[RECIPES])
    model = recipe.model.model_copy(update={"vocab_size": vocabulary})
    assert bytes_per_token(recipe.model_copy(update={"model": model})) == size
