"""The trainer's config.json, out of a recipe and a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.plan import Plan
from trainer.config.config_tables import RateFactors
from trainer.contract import DataConfig, RetentionConfig, RunConfig, TrainConfig


def train_config(
    recipe: Recipe,
    plan: Plan,
    *,
    train_files: Sequence[str],
    validation_files: Sequence[str] = (),
    validation_start_token: int = 0,
    validation_tokens: int = 0,
    window: tuple[int, int | None] | None = None,
    resume_from: str | None = None,
    init_from: str | None = None,
    lineage: Mapping[str, object] | None = None,
) -> RunConfig:
    """config.json of this run: recipe and plan, with the paths of the files on the machine. The same on every call.

    window: first token and length of the training window in these files, where they are cut from the recipe's.
    """
    machine, train = machine_type(plan.machine), recipe.train
    same = {field.name for field in dataclasses.fields(TrainConfig)} & set(type(train).model_fields)
    values = {name: getattr(train, name) for name in sorted(same)}
    data = DataConfig(
        train_files=tuple(train_files),
        validation_files=tuple(validation_files),
        start_token=window[0] if window else recipe.data.start_token,
        tokens=window[1] if window else recipe.data.tokens,
        order=recipe.data.order,
        dtype=recipe.data.dtype,
        validation_start_token=validation_start_token,
        validation_tokens=validation_tokens,
        tokenizer=recipe.data.decoder,
    )
    return RunConfig(
        model=recipe.model.config(),
        data=data,
        # A grad_clip of 0 is how a recipe switches off what the one it extends had switched on.
        train=TrainConfig(
            **{
                **values,
                "steps": plan.steps,
                "micro_batch": plan.micro_batch,
                "grad_clip": train.grad_clip or None,
                "stages": recipe.stages,
                "rate_factors": RateFactors(**train.rate_factors.model_dump()),
            },
            require_compile=plan.paid and bool(train.compile),
        ),
        task=recipe.task.config(),
        retention=RetentionConfig(keep_last=train.keep_last, keep_every=train.keep_every),
        init_from=init_from,
        lineage=dict(lineage or {}),
        resume_from=resume_from,
        peak_flops_per_gpu=machine.peak_flops_per_gpu(train.precision, train.tf32),
        device="cuda" if machine.cuda else "cpu",
        prompts=recipe.eval.prompts,
        sampling=recipe.eval.sampling(),
        slices=recipe.eval.slices,
    )
