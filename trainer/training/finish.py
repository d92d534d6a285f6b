"""Everything after the last step: the slices, leaving the ranks, the last checkpoint, the samples, the closing event.

It must not train, and once the slices are measured no rank waits for another but at the barrier.

Example::

    outcome = finish(run, engine, saver, step)
"""

from __future__ import annotations

import torch

from trainer.contract import (
    EVENT_FINISHED,
    EVENT_SAMPLED,
    EVENT_STOPPED,
    EVENT_WARNING,
    OUTCOME_FINISHED,
    OUTCOME_STOPPED,
)
from trainer.model.generate import Sampling, generate
from trainer.model.gpt import GPT
from trainer.tokens.tokenizer import TokenizerError, decode, open_tokenizer
from trainer.training.final_slices import measure_slices
from trainer.training.ranks import leave
from trainer.training.saver import Saver
from trainer.training.start import Engine, Run

SAMPLE_TOKENS = 64


def finish(run: Run, engine: Engine, saver: Saver | None, step: int) -> str:
    """Measures the slices with all ranks; then leaves the process group, because a slow disk or a long sample on rank 0
    must not run the others into a timeout.

    Returns the outcome: finished, or stopped when `step` is not the last one.
    """
    if step >= run.config.train.steps:
        measure_slices(run, engine, step)
    leave(run.world)
    if saver is not None:
        saver.close()
    if step < run.config.train.steps:
        run.journal.event(EVENT_STOPPED, step)
        return OUTCOME_STOPPED
    if run.world.leads and run.config.prompts:
        sample(run, engine.model, step)
    run.journal.event(EVENT_FINISHED, step)
    return OUTCOME_FINISHED


def sample(run: Run, model: GPT, step: int) -> None:
    """What the model makes of the prompts. A tokenizer that cannot be had costs the samples, not the run."""
    try:
        encoding = open_tokenizer(run.config.data.tokenizer)
    except TokenizerError as error:
        run.journal.event(EVENT_WARNING, step, reason=f"no samples: {error}")
        return
    for number, prompt in enumerate(run.config.prompts):
        ids = encoding.encode_ordinary(prompt) or [encoding.eot_token]
        if max(ids) >= run.config.model.vocab_size:
            run.journal.event(EVENT_WARNING, step, reason=f"no sample: the vocabulary lacks tokens of {prompt!r}")
            continue
        device = run.world.device
        generator = torch.Generator(device).manual_seed(run.config.train.seed + number)
        prompt_ids = torch.tensor([ids], device=device)
        out = generate(model, prompt_ids, SAMPLE_TOKENS, Sampling(top_k=50), generator=generator)
        run.journal.event(EVENT_SAMPLED, step, prompt=prompt, text=decode(encoding, out[0].tolist()))
