"""Puts examples of different lengths into the rows of a tensor.

Unpacked, a row is one example, filled up on the right, where causal attention never
looks. Packed, a row holds several examples one after the other: each is a *segment*
with positions that begin anew, and no token attends to another segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hansa.core.errors import SpecError
from hansa.worker.llm_options import length_misfit
from hansa.worker.trainers.tokenizer import Encoded

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Rows:
    """One forward pass: what goes in, and which next tokens are learned.

    Attributes:
        ids: Token ids that go in, (rows, length).
        wanted: Where the next token is part of an answer, booleans (rows, length).
        targets: Those next tokens, (wanted,), row by row.
        example: Which of the examples each of them belongs to, (wanted,).
        answers: How many each example has, (examples,).
        positions: Place of each token in its example, (rows, length); None where rows
            are not packed: then it is the place in the row.
        segments: Which segment of its row each token belongs to, from 1; 0 is padding,
            (rows, length); None where rows are not packed.
        tokens: How many of `ids` belong to an example.
    """

    ids: Tensor
    wanted: Tensor
    targets: Tensor
    example: Tensor
    answers: Tensor
    tokens: int
    positions: Tensor | None = None
    segments: Tensor | None = None

    @property
    def padding(self) -> int:
        """How many of `ids` only fill up."""
        return self.ids.numel() - self.tokens

    def losses(self, scores: Tensor) -> Tensor:
        """Return the loss of each example, float32, (examples,).

        Args:
            scores: The model's at the wanted positions, (wanted, vocabulary).
        """
        surprise = functional.cross_entropy(
            scores.float(), self.targets, reduction="none"
        )
        total = torch.zeros(len(self.answers), device=self.answers.device)
        return total.index_add(0, self.example, surprise) / self.answers


def passes(
    encoded: Sequence[Encoded], rows_at_once: int, pack_length: int | None = None
) -> list[list[int]]:
    """Divide examples into forward passes of similar lengths.

    Args:
        encoded: The examples.
        rows_at_once: Most rows of a pass.
        pack_length: Longest row in tokens, if rows are packed; None: one example a row.

    Returns:
        The indices of each pass's examples: the shortest first, or packed the longest.
    """
    if pack_length is None:
        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].ids), i))
        filled = [[index] for index in order]
    else:
        filled = _packed(encoded, pack_length)
    return [
        [index for row in filled[start : start + rows_at_once] for index in row]
        for start in range(0, len(filled), rows_at_once)
    ]


def rows(
    encoded: Sequence[Encoded],
    pad: int,
    device: torch.device,
    pack_length: int | None = None,
) -> Rows:
    """Put the examples of one pass into rows.

    Args:
        encoded: The examples; none at all make one row of padding, for a rank that
            must do the pass with the others and has nothing to do.
        pad: Id to fill up with.
        device: Where the tensors go.
        pack_length: Longest row in tokens, if rows are packed; None: one example a row.
    """
    if pack_length is None:
        filled = [[index] for index in range(len(encoded))]
    else:
        filled = _packed(encoded, pack_length)
    # Of an example all tokens but the last go in, all but the first are predicted.
    lengths = [len(entry.ids) - 1 for entry in encoded]
    width = max((sum(lengths[i] for i in row) for row in filled), default=1)
    ids, targets = _grid(filled, width, pad), _grid(filled, width, pad)
    wanted, owner = _grid(filled, width, 0), _grid(filled, width, 0)
    places, segments = _grid(filled, width, 0), _grid(filled, width, 0)
    for line, row in enumerate(filled):
        start = 0
        for segment, index in enumerate(row, start=1):
            entry, end = encoded[index], start + lengths[index]
            ids[line][start:end] = entry.ids[:-1]
            targets[line][start:end] = entry.ids[1:]
            wanted[line][start:end] = entry.learned[1:]
            owner[line][start:end] = [index] * lengths[index]
            places[line][start:end] = range(lengths[index])
            segments[line][start:end] = [segment] * lengths[index]
            start = end
    where = torch.tensor(wanted, dtype=torch.bool)
    packed = pack_length is not None
    return Rows(
        ids=torch.tensor(ids, device=device),
        wanted=where.to(device),
        targets=torch.tensor(targets)[where].to(device),
        example=torch.tensor(owner)[where].to(device),
        answers=torch.tensor([e.answer for e in encoded], device=device),
        tokens=sum(lengths),
        positions=torch.tensor(places, device=device) if packed else None,
        segments=torch.tensor(segments, device=device) if packed else None,
    )


def separate(segments: Tensor) -> Tensor:
    """Return which position may attend to which, booleans (rows, 1, length, length).

    Those of the same segment, not after it. Padding sees padding, so that no position
    sees nothing at all, which would be a division by zero.
    """
    same = segments[:, :, None] == segments[:, None, :]
    return torch.tril(same)[:, None]


@torch.no_grad()
def check_separate(
    scores: Callable[[Rows], Tensor], device: torch.device, sequence: int
) -> None:
    """Make sure that a model keeps the examples of a packed row apart.

    Some can't: recurrent layers carry one example on into the next, some attention
    ignores the mask. So an example is put behind another one and must score as it does
    alone. All ranks must call it.

    Args:
        scores: The model, in evaluation mode.
        device: Where it is.
        sequence: Longest example that it is made for, in tokens, at least 8.

    Raises:
        SpecError: It does not.
    """
    size = min(sequence, 8)
    first, second = (
        Encoded(
            tuple(start + 3 * i for i in range(size)), (False, *[True] * (size - 1))
        )
        for start in (5, 7)
    )
    apart = torch.cat([scores(rows([one], 0, device)) for one in (first, second)])
    packed = scores(rows([first, second], 0, device, 2 * size))
    gap = (apart.float() - packed.float()).abs().max().item()
    spread = apart.float().std().item()
    if not gap <= 2 * torch.finfo(apart.dtype).eps ** 0.5 * spread:  # rounding
        raise SpecError(
            "This model does not keep the examples of a packed row apart: scores "
            f"differ by {gap:.2g}.",
            hint="Set work.packing: false.",
        )


def check_length(config: Mapping[str, Any], sequence: int) -> None:
    """Refuse sequences that are longer than a model is made for.

    Args:
        config: The model's Hugging Face config.
        sequence: `work.sequence_length`, in tokens.

    Raises:
        SpecError: They are longer.
    """
    misfit = length_misfit(sequence, _positions(config) or 0)
    if misfit is not None:
        raise SpecError(misfit[0], hint=misfit[1])


def longest_question(config: Mapping[str, Any], sequence: int, answer: int) -> int:
    """Return how many tokens a question may have that is to be answered.

    Args:
        config: The model's Hugging Face config.
        sequence: `work.sequence_length`, in tokens.
        answer: Most tokens of the answer.

    Raises:
        SpecError: The answer leaves no room for a question.
    """
    most = _positions(config)
    room = sequence if most is None else min(sequence, most - answer)
    if room < 1:
        raise SpecError(
            f"Answers may have {answer} tokens, and the model is made for {most} "
            "tokens, question and answer together.",
            hint="Ask for shorter answers.",
        )
    return room


def _positions(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model is made for; None if its config does not say."""
    inner = config.get("text_config")
    config = inner if isinstance(inner, Mapping) else config
    known = [config[key] for key in _POSITIONS if isinstance(config.get(key), int)]
    return known[0] if known else None


def _packed(encoded: Sequence[Encoded], length: int) -> list[list[int]]:
    """Return the examples of each row: the longest first, each where it first fits.

    First-fit decreasing needs at most 11/9 of the fewest possible rows (Johnson, 1973).
    Those of some whole rows, packed again, come into the same rows.
    """
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i].ids), i))
    filled: list[list[int]] = []
    room: list[int] = []
    for index in order:
        need = len(encoded[index].ids) - 1
        row = next((row for row, free in enumerate(room) if need <= free), len(room))
        if row == len(room):
            filled.append([])
            room.append(length - 1)
        filled[row].append(index)
        room[row] -= need
    return filled


def _grid(filled: Sequence[object], width: int, value: int) -> list[list[int]]:
    return [[value] * width for _ in range(max(len(filled), 1))]
