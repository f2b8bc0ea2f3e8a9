"""What a forward pass keeps for the backward pass, in bytes for each token.

Counted off what autograd saves in eager mode, family by family, as Korthikanti et al.
do for GPT (arXiv 2205.05198, section 4.1). Attention is torch's fused one, which keeps
no scores: only its inputs, its output and one sum for each head.

``s`` is the width of the arithmetic in bytes: 4 for float32, 2 for bfloat16.
"""

from __future__ import annotations

from hansa.planner.shape import OWN, ModelShape

_WIDE = 4
"""Bytes of float32, which norms compute in."""


def kept_by_layer(
    shape: ModelShape, s: int, length: int = 0, *, host: bool = False
) -> int:
    """Return the bytes that one decoder layer keeps for each token.

    Args:
        shape: The model.
        s: Width of the arithmetic.
        length: Tokens of a sequence.
        host: Whether it runs on the processor. There the mask of a dropout is as wide
            as the numbers, and attention with dropout is not fused: it keeps three
            times its float32 weights, and its inputs in float32.
    """
    masks = shape.dropouts * shape.hidden * (s if host else 1)
    kept = _KEPT[shape.family](shape, s) + masks
    if not (host and shape.attention_dropout):
        return kept
    inputs = (shape.heads + 2 * shape.kv_heads) * shape.head_width
    weights = 3 * _WIDE * shape.heads * length
    return kept + weights + (_WIDE - s) * inputs - _WIDE * shape.heads


def kept_by_checkpoint(shape: ModelShape, s: int) -> int:
    """Return the bytes kept for each token of a layer that is computed twice."""
    return s * shape.hidden


def kept_outside(shape: ModelShape, s: int) -> int:
    """Return the bytes kept for each token between the last layer and the loss.

    They are the last norm's input and output, and what the head is multiplied with.
    """
    return (2 * _WIDE + 2 * s) * shape.hidden


def at_work(shape: ModelShape, s: int) -> int:
    """Return the bytes for each token of what one layer's backward pass brings.

    The widest moment is in the feed-forward layer: the gradients of its inner numbers
    (of the two halves, where it is gated), beside that of the residual stream.
    """
    gated = 3 if shape.family in ("llama", OWN) else 2
    return s * (gated * shape.inner + 2 * shape.hidden)


def _llama(shape: ModelShape, s: int) -> int:
    # The input in float32, its normed form before the weight and after it.
    norm = (_WIDE + 2 * s) * shape.hidden + _WIDE
    return 2 * norm + _attention(shape, s) + _gated(shape, s)


def _own(shape: ModelShape, s: int) -> int:
    # torch's RMSNorm keeps the normed form in float32.
    norm = (2 * _WIDE + s) * shape.hidden + _WIDE
    return 2 * norm + _attention(shape, s) + _gated(shape, s)


def _attention(shape: ModelShape, s: int) -> int:
    """Return queries, keys, values, output and the logarithm of the sum of weights."""
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    return s * (2 * queries + 2 * keys) + _WIDE * shape.heads


def _gated(shape: ModelShape, s: int) -> int:
    """Return gate, its SiLU, the other half and their product."""
    return 4 * s * shape.inner


def _norm(shape: ModelShape, s: int) -> int:
    """Return input, output and two statistics of torch's LayerNorm."""
    return 2 * s * shape.hidden + 2 * s


def _gpt2(shape: ModelShape, s: int) -> int:
    # GELU is computed in five steps there, each of which keeps its input.
    return 2 * _norm(shape, s) + _attention(shape, s) + 5 * s * shape.inner


def _opt(shape: ModelShape, s: int) -> int:
    return 2 * _norm(shape, s) + _attention(shape, s) + s * shape.inner


def _gpt_neox(shape: ModelShape, s: int) -> int:
    # Both norms have the same input; keys and queries are turned, the values are a view
    # into the product of all three, and the output is copied.
    norms = 2 * _norm(shape, s) - s * shape.hidden
    attention = 7 * s * shape.hidden + _WIDE * shape.heads
    return norms + attention + 2 * s * shape.inner


_KEPT = {
    "llama": _llama,
    OWN: _own,
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt-neox": _gpt_neox,
}
