"""`python -m trainer.inference.chat`: a conversation with a model that was tuned on instructions.

Reads a line, answers it as the answer is written, reads the next. A model tuned on single instructions has never seen a
turn before its own: it reads none unless you ask for --turns. Ctrl-C ends an answer, the end of the input the program.

Example::

    python -m trainer.inference.chat runs/instruct
    echo "Name three colours." | python -m trainer.inference.chat runs/instruct --temperature 0
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

import tiktoken
import torch

from trainer.arguments import add_model_arguments, load_writing_model
from trainer.checkpoints.manifest import CheckpointError
from trainer.inference.tuned_prompt import answering_prompt
from trainer.model.generate import Sampling, SamplingError, new_tokens
from trainer.model.gpt import GPT
from trainer.prompt_template import prompt_of
from trainer.tokens.tokenizer import Pieces, TokenizerError, open_tokenizer

PROMPT = "> "
GREETING = "Type an instruction. Ctrl-C ends an answer, Ctrl-D the conversation."


@dataclass
class Conversation:
    """What was said, as ids: each turn is a prompt, its answer and the end-of-text mark."""

    model: GPT
    encoding: tiktoken.Encoding
    template: str
    sampling: Sampling
    most_tokens: int
    generator: torch.Generator
    most_turns: int = 0
    """Earlier turns that the model reads, the newest ones."""
    turns: list[list[int]] = field(default_factory=list)

    def answer(self, text: str) -> Generator[str, None, None]:
        """The answer in pieces, as it is written. What was written when the caller stops is part of the conversation.
        Raises SamplingError where the text alone does not fit."""
        asked = self.encoding.encode_ordinary(prompt_of(self.template, text, ""))
        context = self.model.config.context_length
        if len(asked) >= context:
            raise SamplingError(f"that is {len(asked):,} tokens, and the model reads {context:,}: say less")
        if max(asked) >= self.model.config.vocab_size:
            raise SamplingError("the model does not know this tokenizer's ids: name its own with --tokenizer")
        before = self._remembered(len(asked))
        written: list[int] = []
        try:
            yield from self._written([*before, *asked], written)
        finally:
            self.turns.append([*asked, *written, self.encoding.eot_token])

    def _remembered(self, asked: int) -> list[int]:
        """The newest turns that leave half of the rest to the answer, or all that it may take."""
        rest = self.model.config.context_length - asked
        room = rest - min(self.most_tokens, (rest + 1) // 2)
        kept: list[int] = []
        for turn in reversed(self.turns[-self.most_turns :] if self.most_turns else []):
            if len(kept) + len(turn) > room:
                break
            kept = [*turn, *kept]
        return kept

    def _written(self, ids: list[int], written: list[int]) -> Generator[str, None, None]:
        """No further than the context: beyond it every token would read the whole window again."""
        end, pieces = self.encoding.eot_token, Pieces(self.encoding)
        tokens = min(self.most_tokens, self.model.config.context_length - len(ids))
        rows = torch.tensor([ids], device=self.model.device)
        for new in new_tokens(self.model, rows, tokens, self.sampling, generator=self.generator, stop_id=end):
            token = int(new[0])
            if token == end:
                break
            written.append(token)
            yield pieces.add(token)
        if rest := pieces.end():
            yield rest


def talk(conversation: Conversation, read: Callable[[], str], write: Callable[[str], object], *, rates: bool) -> None:
    """Until `read` raises EOFError. KeyboardInterrupt ends the answer that is being written, or an unfinished line."""
    while True:
        try:
            text = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            write("\n(Ctrl-D ends the conversation)\n")
            continue
        if text:
            _answer(conversation, text, write, rates=rates)


def _answer(conversation: Conversation, text: str, write: Callable[[str], object], *, rates: bool) -> None:
    started, count = time.monotonic(), 0
    try:
        with closing(conversation.answer(text)) as pieces:
            for piece in pieces:
                count += 1
                write(printable(piece))
    except KeyboardInterrupt:
        write(" ...")
    except SamplingError as error:
        write(f"({error})")
    rate = count / max(time.monotonic() - started, 1e-9)
    write(f"\n[{count} tokens, {rate:.1f} tok/s]\n" if rates else "\n")


def printable(text: str) -> str:
    """Without characters that steer a terminal: what a model writes is anyone's text."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def _read() -> str:
    if sys.stdin.isatty():
        _write(PROMPT)  # input() would write it on stderr, which `gptctl chat` reads for the reason of a refusal
    return input()


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _run(options: argparse.Namespace) -> None:
    template = answering_prompt(options.folder, options.prompt)
    if options.max_tokens < 1 or options.turns < 0:
        raise SamplingError(f"--max-tokens must be at least 1 and --turns 0, got {options.max_tokens}, {options.turns}")
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    chosen = load_writing_model(options)
    conversation = Conversation(
        chosen.model, open_tokenizer(chosen.tokenizer), template, sampling, options.max_tokens,
        torch.Generator().manual_seed(options.seed), options.turns,
    )  # fmt: skip
    if sys.stdin.isatty():
        _write(f"{GREETING}\n")
    talk(conversation, _read, _write, rates=sys.stdout.isatty())


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.inference.chat", description="Talk with a model.")
    add_model_arguments(parser)
    parser.add_argument("--prompt", help="alpaca, or a text with {instruction} (default: the run's)")
    parser.add_argument("--turns", type=int, default=0, help="earlier turns that the model reads (default: 0)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of an answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default: 0.7)")
    parser.add_argument("--top-k", type=int, help="draw from the K most probable tokens")
    parser.add_argument("--top-p", type=float, help="draw from the most probable tokens that together reach P")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers (default: 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0, or 1 with the reason on stderr."""
    try:
        _run(_parse(arguments))
    except (CheckpointError, SamplingError, TokenizerError, OSError) as error:
        print(f"inference.chat: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
