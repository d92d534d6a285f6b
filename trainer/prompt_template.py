"""The text around an instruction: what a model is trained to answer, and what `gptctl chat` asks it.

Example::

    prompt_of("alpaca", "Name three colours.", "")        # "Below is an instruction ...\\n\\n### Response:\\n"
    prompt_of("Q: {instruction} {input}\\nA: ", "Who?", "")
"""

from __future__ import annotations

ALPACA = "alpaca"
HEAD = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}{more}\n\n### Response:\n"
)
"""Stanford Alpaca's, github.com/tatsu-lab/stanford_alpaca."""
PAIRED = ", paired with an input that provides further context"


class TemplateError(ValueError):
    """A template without a place for the instruction."""


def check_template(template: str) -> None:
    """Raises TemplateError."""
    if template != ALPACA and "{instruction}" not in template:
        raise TemplateError(f"task.prompt: must be {ALPACA}, or a text with {{instruction}} in it, got {template!r}")


def prompt_of(template: str, instruction: str, more: str) -> str:
    """The text that a response follows. `more`: the example's input, often empty."""
    if template == ALPACA:
        asked = HEAD.replace("{paired}", PAIRED if more else "")
        return asked.replace("{more}", f"\n\n### Input:\n{more}" if more else "").replace("{instruction}", instruction)
    parts = template.split("{instruction}")
    return instruction.join(part.replace("{input}", more) for part in parts)
