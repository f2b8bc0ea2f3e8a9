"""Greedy generation: the likeliest next token, again and again, up to an end mark.

Keys and values of what was read are kept, so each token costs one short pass. Examples
of similar length share a pass. Models of transformers generate by their own
``generate``; for our own `Llama` the pass with a memory is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hansa.worker.base import Example
from hansa.worker.trainers.llama import Llama, rotate
from hansa.worker.trainers.models import LanguageModel

_WINDOW = 4  # passes whose examples are sorted by length together

Ids = tuple[int, ...]


@torch.no_grad()
def answers(
    model: LanguageModel,
    examples: Iterable[Example],
    *,
    tokens: int,
    longest: int,
    rows: int,
) -> list[str]:
    """Return what a model answers to the inputs of examples.

    Args:
        model: In evaluation mode.
        examples: Taken a window at a time, as taking one is where a worker that is told
            to stop interrupts.
        tokens: Most tokens of an answer.
        longest: Most tokens of a question; longer ones lose their beginning.
        rows: Most examples of a pass.
    """
    tokenizer = model.tokenizer
    found: list[str] = []
    waiting = iter(examples)
    while window := list(islice(waiting, _WINDOW * rows)):
        asked = [tokenizer.question(example, longest) for example in window]
        order = sorted(range(len(asked)), key=lambda i: (len(asked[i]), i))
        made: dict[int, str] = {}
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            given = _greedy(model, [asked[i] for i in chosen], tokens)
            for index, ids in zip(chosen, given, strict=True):
                made[index] = tokenizer.decode(ids)
        found += [made[index] for index in range(len(window))]
    return found


def _greedy(model: LanguageModel, asked: Sequence[Ids], tokens: int) -> list[Ids]:
    """Return the ids of the answers, end marks left out."""
    ends = model.tokenizer.marks
    if isinstance(model.module, Llama):
        made = _by_llama(model.module, asked, tokens, ends)
    else:
        made = _by_transformers(model.module, asked, tokens, ends, model.tokenizer.eos)
    return [_before(ids, ends) for ids in made]


def _before(ids: Sequence[int], ends: frozenset[int]) -> Ids:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[:stop])


def _by_transformers(
    module: Any, asked: Sequence[Ids], tokens: int, ends: frozenset[int], pad: int
) -> list[list[int]]:
    width = max(len(ids) for ids in asked)
    rows = [[pad] * (width - len(ids)) + list(ids) for ids in asked]
    seen = [[0] * (width - len(ids)) + [1] * len(ids) for ids in asked]
    device = next(module.parameters()).device
    given: Tensor = module.generate(
        input_ids=torch.tensor(rows, device=device),
        attention_mask=torch.tensor(seen, device=device),
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
    )
    new: list[list[int]] = given[:, width:].tolist()
    return new


def _by_llama(
    llama: Llama, asked: Sequence[Ids], tokens: int, ends: frozenset[int]
) -> list[list[int]]:
    weight = llama.model.embed_tokens.weight
    lengths = torch.tensor([len(ids) for ids in asked], device=weight.device)
    width = int(lengths.max())
    # Filled up on the right: a row's own tokens take the places of the padding.
    ids = torch.tensor(
        [[*row, *[0] * (width - len(row))] for row in asked], device=weight.device
    )
    memory = _Memory(llama, len(asked), width + tokens)
    places = torch.arange(width, device=weight.device).expand_as(ids)
    every = torch.arange(len(asked), device=weight.device)
    last = memory.read(ids, places)[every, lengths - 1]
    made: list[list[int]] = [[] for _ in asked]
    open_ = [True] * len(asked)
    for count in range(tokens):
        best = functional.linear(last, weight).argmax(-1)
        for row, token in enumerate(best.tolist()):
            made[row].append(token)
            open_[row] = open_[row] and token not in ends
        if not any(open_) or count + 1 == tokens:
            break
        last = memory.read(best[:, None], (lengths + count)[:, None])[:, 0]
    return made


class _Memory:
    """What a decoder keeps of the tokens that it has read: keys and values.

    Args:
        llama: The decoder.
        rows: How many texts it reads side by side.
        room: Most tokens of a text.
    """

    def __init__(self, llama: Llama, rows: int, room: int) -> None:
        weight = llama.model.embed_tokens.weight
        size = (rows, llama.shape.shared_heads, room, llama.shape.head)
        self._llama = llama
        self._rows = torch.arange(rows, device=weight.device)[:, None]
        self._places = torch.arange(room, device=weight.device)
        self._kept = [
            (weight.new_zeros(size), weight.new_zeros(size)) for _ in llama.model.layers
        ]

    def read(self, ids: Tensor, places: Tensor) -> Tensor:
        """Read more tokens of each text and return the decoder's states at them.

        Args:
            ids: Token ids, (rows, tokens).
            places: Where each stands in its text, (rows, tokens); what was read there
                before is forgotten.

        Returns:
            (rows, tokens, width).
        """
        decoder: Any = self._llama.model
        turns = self._llama.rotations(places, decoder.embed_tokens.weight)
        seen = self._places <= places[:, None, :, None]
        x: Tensor = decoder.embed_tokens(ids)
        for layer, kept in zip(decoder.layers, self._kept, strict=True):
            norm: Any = layer.input_layernorm
            x = x + self._attend(layer.self_attn, norm(x), turns, places, seen, kept)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        result: Tensor = decoder.norm(x)
        return result

    def _attend(
        self,
        attention: Any,
        x: Tensor,
        turns: tuple[Tensor, Tensor],
        places: Tensor,
        seen: Tensor,
        kept: tuple[Tensor, Tensor],
    ) -> Tensor:
        split = (*x.shape[:2], -1, attention.head)
        keys, values = kept
        q = rotate(attention.q_proj(x).view(split).transpose(1, 2), *turns)
        k = rotate(attention.k_proj(x).view(split).transpose(1, 2), *turns)
        keys[self._rows, :, places] = k.transpose(1, 2)
        values[self._rows, :, places] = attention.v_proj(x).view(split)
        mixed = functional.scaled_dot_product_attention(
            q, keys, values, attn_mask=seen, enable_gqa=attention.grouped
        )
        result: Tensor = attention.o_proj(mixed.transpose(1, 2).reshape(x.shape))
        return result
