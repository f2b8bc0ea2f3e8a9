"""How much memory a training step takes on the fullest rank, part by part.

Weights, gradients and optimizer after Rajbhandari et al., arXiv 1910.02054 (ZeRO),
section 3, with the widths that Hansa's engines have; activations: see `activations`.
A step has several moments that could be its fullest; each is added up, and the fullest
one counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from hansa.planner.activations import (
    at_work,
    kept_by_checkpoint,
    kept_by_layer,
    kept_outside,
)
from hansa.planner.holdings import Held, hold
from hansa.planner.setting import HEAP_BLOCK, WIDE, Setting
from hansa.planner.shape import OWN, ModelShape

GPU_BASE = 1_000_000_000
"""Of a process on a GPU: the driver's context and the buffers of NCCL or the like."""
HOST_BASE = 450_000_000
"""Of a process on the processor: Python, torch and the libraries."""
HEAP_WASTE = 0.08
"""Part of what comes and goes that is lost between blocks; all three are measured."""
HEAP_HOLES = 0.3
"""That of the activations: gradients come to lie in the holes that they leave."""
HEAP_SPOILED = 0.6
"""The same where gradients are there in the forward pass, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What the memory of a rank goes into at its fullest moment, in bytes.

    Attributes:
        weights: The rank's part of the weights in the dtype of the arithmetic (fsdp:
            as they are kept between the layers).
        gradients: Its part of the gradients.
        optimizer: Its part of the moments, and of the float32 weights of "mixed".
        activations: What the layers keep for the backward pass, and one at work.
        logits: The scores over the vocabulary, in the loss and in its gradient.
        buffers: Gathered layers, and numbers on their way to other ranks.
        base: The process, its libraries and the device's context.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    base: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.to_json().values())

    def to_json(self) -> dict[str, int]:
        """Return the parts by name."""
        return {one.name: int(getattr(self, one.name)) for one in fields(self)}


def predict(shape: ModelShape, setting: Setting) -> Parts:
    """Return the memory of the fullest rank at its fullest moment.

    Where the processor is the device, that is the process' resident memory; else the
    device's, and `host_memory` is what offloading takes beside it.
    """
    held = hold(shape, setting)
    moments = list(_moments(held, shape, setting))
    stream = setting.width * setting.tokens * shape.hidden
    if setting.host and max(stream, held.block) < HEAP_BLOCK:
        return _in_heap(moments, held)
    return max(moments, key=lambda parts: parts.total)


def _in_heap(moments: Sequence[Parts], held: Held) -> Parts:
    """Return what a process comes to whose freed blocks are hardly used again.

    glibc's allocator keeps blocks of up to `HEAP_BLOCK` when they are freed, and finds
    few of another size a place in them. So what is needed at different moments adds up.
    """
    most = {
        one.name: max(int(getattr(parts, one.name)) for parts in moments)
        for one in fields(Parts)
    }
    most["buffers"] = held.scattered
    for name in ("gradients", "logits", "buffers"):
        most[name] = round(most[name] * (1 + HEAP_WASTE))
    holes = HEAP_SPOILED if held.early else HEAP_HOLES
    most["activations"] = round(most["activations"] * (1 + holes))
    return Parts(**most)


def host_memory(shape: ModelShape, setting: Setting) -> int:
    """Return what offloading takes of the node's memory for each rank, in bytes."""
    return hold(shape, setting).offloaded


def _moments(held: Held, shape: ModelShape, setting: Setting) -> Iterator[Parts]:
    kept, working = _activations(shape, setting)
    loss = Parts(
        weights=held.weights,
        gradients=held.early,
        optimizer=held.optimizer,
        activations=kept,
        logits=_logits(shape, setting),
        buffers=held.gathered,
        base=_base(setting),
    )
    yield loss
    yield replace(
        loss,
        gradients=held.first,
        activations=kept + working,
        logits=0,
        buffers=held.moving,
    )
    end = replace(loss, activations=0, logits=0)
    yield replace(end, gradients=held.late, buffers=held.moving)
    yield replace(end, gradients=held.final, buffers=held.step)


def _activations(shape: ModelShape, setting: Setting) -> tuple[int, int]:
    """Return the bytes of what all layers keep, and of one layer's backward pass."""
    s, tokens = setting.width, setting.tokens
    layer = kept_by_layer(shape, s, setting.sequence_length, host=setting.host)
    working, outside = at_work(shape, s), tokens * kept_outside(shape, s)
    if not setting.activation_checkpointing:
        return tokens * layer * shape.layers + outside, tokens * working
    kept = tokens * kept_by_checkpoint(shape, s) * shape.layers
    return kept + outside, tokens * (layer + working)


def _logits(shape: ModelShape, setting: Setting) -> int:
    """Return the bytes of the loss: three times float32 scores in its backward pass.

    Those are the logarithms of the probabilities and the gradients on both sides of
    them. Models of transformers first have scores for all tokens.
    """
    answer = setting.sequence_length if setting.answer is None else setting.answer
    wanted = setting.micro_batch * min(answer, setting.sequence_length)
    loss = 3 * WIDE * wanted
    if shape.family == OWN:
        return loss * shape.vocabulary
    s = setting.width
    every = s * setting.tokens + (s + WIDE) * wanted
    return max(loss, every) * shape.vocabulary


def _base(setting: Setting) -> int:
    if setting.base is not None:
        return setting.base
    return HOST_BASE if setting.host else GPU_BASE
