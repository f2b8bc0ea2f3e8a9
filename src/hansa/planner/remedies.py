"""What would make a model fit that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hansa.planner.fitting import Machine, Wants, fit
from hansa.planner.shape import Adapters, ModelShape

_MOST_NODES = 1024
_RANK = 16
_TARGETS = {"gpt2": ("c_attn",), "gpt-neox": ("query_key_value",)}


def remedies(shape: ModelShape, wants: Wants, machine: Machine) -> tuple[str, ...]:
    """Return what would fit, one change at a time, the easiest first.

    Each is worked out as the plan itself is, so it does fit.
    """
    return tuple(_remedies(shape, wants, machine))


def adapters_for(shape: ModelShape, rank: int) -> Adapters:
    """Return adapters beside the layers of a family that usually have them."""
    targets = _TARGETS.get(shape.family, ("q_proj", "v_proj"))
    return Adapters(rank=rank, targets=targets)


def _remedies(shape: ModelShape, wants: Wants, machine: Machine) -> Iterator[str]:
    for words, change in _settings(wants):
        if fit(shape, change, machine):
            yield words
    if nodes := _nodes(shape, wants, machine):
        yield f"{nodes} nodes ({nodes * machine.ranks_per_node} ranks)"
    if length := _length(shape, wants, machine):
        yield f"sequence_length: {length}"
    if shape.adapters is None:
        thin = shape.with_adapters(adapters_for(shape, _RANK))
        if fit(thin, wants, machine):
            yield f"LoRA (model.options.lora: {{rank: {_RANK}}})"


def _settings(wants: Wants) -> Iterator[tuple[str, Wants]]:
    """Yield other values of `work` that nobody else has to grant."""
    if wants.sharding == "auto":
        if wants.precision == "float32":
            yield "precision: mixed", replace(wants, precision="mixed")
        return
    size = wants.micro_batch
    while size > 1:
        size //= 2
        yield f"micro_batch: {size}", replace(wants, micro_batch=size)
    if not wants.activation_checkpointing:
        yield (
            "activation_checkpointing: true",
            replace(wants, activation_checkpointing=True),
        )
    if wants.sharding == "fsdp" and not wants.cpu_offload:
        yield "cpu_offload: true", replace(wants, cpu_offload=True)
    yield "sharding: auto", replace(wants, sharding="auto")
    if wants.precision == "float32":
        yield "precision: mixed", replace(wants, precision="mixed")


def _nodes(shape: ModelShape, wants: Wants, machine: Machine) -> int | None:
    """Return the fewest nodes, in powers of two times those there are, that would do.

    The batch grows with them, so that every rank has as many examples as before.
    """
    factor = 2
    nodes = -(-machine.ranks // machine.ranks_per_node)
    while nodes * factor <= _MOST_NODES:
        more = replace(machine, ranks=machine.ranks * factor)
        if fit(shape, replace(wants, batch=wants.batch * factor), more):
            return nodes * factor
        factor *= 2
    return None


def _length(shape: ModelShape, wants: Wants, machine: Machine) -> int | None:
    length = wants.sequence_length // 2
    while length >= 8:
        if fit(shape, replace(wants, sequence_length=length), machine):
            return length
        length //= 2
    return None
