"""Generation with kept keys and values against full recomputation, whatever the lengths of rows and context."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.files.small_runs import TINY
from trainer.model.generate import Sampling, continuations, generate
from trainer.model.gpt import GPT
from trainer.model.kv_cache import KeyValueCache
from trainer.tokens.tokenizer import Pieces, decode, open_tokenizer


def model() -> GPT:
    torch.manual_seed(5)
    return GPT(TINY).eval()


@torch.no_grad()
def recomputed(net: GPT, ids: Tensor, tokens: int) -> Tensor:
    """Greedy, as it was before the cache: all of the last context for every token."""
    for _ in range(tokens):
        logits = net(ids[:, -net.config.context_length :])[:, -1]
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids


@pytest.mark.parametrize("length", [1, 7, 30, 31, 32, 33, 40])
def test_the_cache_writes_what_recomputation_writes(length: int) -> None:
    net = model()
    ids = torch.randint(257, (3, length), generator=torch.Generator().manual_seed(length))
    assert torch.equal(generate(net, ids, 20, Sampling(greedy=True)), recomputed(net, ids, 20))


@torch.no_grad()
@pytest.mark.parametrize("parts", [[24], [1] * 24, [8, 1, 1, 14], [23, 1]])
def test_logits_are_those_of_the_whole_text_however_it_arrives(parts: list[int]) -> None:
    net = model()
    ids = torch.randint(257, (2, 24))
    cache = KeyValueCache(TINY, 2, 32, net.device)
    for part in ids.split(parts, dim=1):
        logits = net.next_token_logits(part, cache)
    assert torch.allclose(logits, net(ids)[:, -1], atol=1e-5, rtol=0)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), more=st.integers(1, 12))
def test_a_row_in_a_batch_of_any_lengths_is_written_as_alone(lengths: list[int], more: int) -> None:
    net = model()
    rows = [torch.randint(257, (1, length)) for length in lengths]
    longest = max(lengths)
    filled = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0), value=9) for row in rows])
    pads = torch.tensor([longest - length for length in lengths])
    together = generate(net, filled, more, Sampling(greedy=True), pads=pads)
    for row, both, pad in zip(rows, together, pads.tolist(), strict=True):
        # A row that waits for longer ones sees the window that the longest one has left.
        if longest + more <= TINY.context_length:
            assert torch.equal(both[pad:], recomputed(net, row, more)[0])
        assert torch.equal(both[pad : pad + row.shape[1]], row[0])


def test_pieces_of_a_text_are_its_text() -> None:
    net, encoding = model(), open_tokenizer("bytes")
    said: list[str] = []
    ((text, count),) = continuations(net, encoding, "für ", tokens=30, seed=3, say=said.append)
    assert count == 30
    assert text.startswith("für " + "".join(said))
    assert len(said) > 10


@given(ids=st.lists(st.integers(0, 300), max_size=30))
def test_pieces_end_where_decoding_ends(ids: list[int]) -> None:
    encoding = open_tokenizer("bytes")
    pieces = Pieces(encoding)
    assert "".join([*map(pieces.add, ids), pieces.end()]) == decode(encoding, ids)
