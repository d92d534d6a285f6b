"""Everything after the last step: the slices, leaving the ranks, the last checkpoint, the samples, the closing event.

It must not train, and once the slices are measured no rank waits for another but at the barrier. Only the checkpoint
can fail the run here: any other trouble costs its own result and a warning.

Example::

    outcome = finish(run, engine, saver, step)
"""

from __future__ import annotations

from trainer.checkpoints.checkpoint import load_model
from trainer.config.task_config import INSTRUCT
from trainer.model.generate import Sampling, continuations
from trainer.model.gpt import GPT
from trainer.prompt_template import prompt_of
from trainer.run_files import EVENT_FINISHED, EVENT_SAMPLED, EVENT_STOPPED, OUTCOME_FINISHED, OUTCOME_STOPPED
from trainer.tokens.tokenizer import open_tokenizer
from trainer.training.failures import Expendable
from trainer.training.final_slices import measure_slices
from trainer.training.ranks import leave
from trainer.training.saver import Saver
from trainer.training.start import Engine, Run


def finish(run: Run, engine: Engine, saver: Saver | None, step: int) -> str:
    """Measures the slices with all ranks; then leaves the process group, because a slow disk or a long sample on rank 0
    must not run the others into a timeout.

    Returns the outcome: finished, or stopped when `step` is not the last one. Raises CheckpointError.
    """
    emit = run.journal.event
    if step >= run.config.train.steps:
        measure_slices(run, engine, step)
    if engine.sharded and saver is not None:  # its ranks write together
        saver.close()
    with Expendable(emit, step, "a rank was lost after the last step"):
        leave(run.world)
    if saver is not None:
        saver.close()
    if step < run.config.train.steps:
        emit(EVENT_STOPPED, step)
        return OUTCOME_STOPPED
    if run.world.leads and run.config.prompts:
        with Expendable(emit, step, "no samples"):
            sample(run, whole_model(run, engine), step)
    emit(EVENT_FINISHED, step)
    return OUTCOME_FINISHED


def whole_model(run: Run, engine: Engine) -> GPT:
    """The model; under FSDP, where a rank has only a part of it, as it was just saved. Raises CheckpointError."""
    return load_model(run.folder, run.world.device)[0] if engine.sharded else engine.model


def sample(run: Run, model: GPT, step: int) -> None:
    """An event `sampled` for each prompt of the config, or a warning. Raises TokenizerError."""
    encoding, drawn = open_tokenizer(run.config.data.tokenizer), run.config.sampling
    sampling = Sampling(drawn.temperature, drawn.top_k or None, drawn.top_p)
    for number, prompt in enumerate(run.config.prompts):
        asked = prompt_of(run.config.task.prompt, prompt, "") if run.config.task.kind == INSTRUCT else prompt
        with Expendable(run.journal.event, step, f"no sample for {prompt!r}"):
            seed = run.config.train.seed + number
            for text, _ in continuations(model, encoding, asked, tokens=drawn.tokens, sampling=sampling, seed=seed):
                run.journal.event(EVENT_SAMPLED, step, prompt=prompt, text=text)
