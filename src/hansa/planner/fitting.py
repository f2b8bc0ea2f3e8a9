"""Finds the way to train that moves least among those that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hansa.core.units import format_size
from hansa.planner.memory import Parts, host_memory, predict
from hansa.planner.setting import Setting
from hansa.planner.shape import ModelShape

MARGIN = 0.08
"""Part of the memory that is left free: for fragments and for what is not known."""
BUSY = 2048
"""Tokens that a pass should have, as far as `micro_batch` allows: with fewer a device
waits for its own kernels and, with sharded weights, for the others. A rule of thumb."""

_LADDER = ("ddp", "zero1", "fsdp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wants:
    """What a facility's `work` asks for.

    Attributes:
        sharding: "auto", or the one that must be taken; then passes have `micro_batch`
            examples, and nothing else is turned on.
        precision: "float32", "bfloat16" or "mixed".
        optimizer: "adamw" or "sgd".
        batch: Examples of one optimizer step, over all ranks.
        micro_batch: Most examples of one pass.
        sequence_length: Tokens of the longest example.
        activation_checkpointing: Whether it is on; "auto" may turn it on.
        cpu_offload: Whether it is on; "auto" may turn it on.
    """

    sharding: str = "auto"
    precision: str = "float32"
    optimizer: str = "adamw"
    batch: int = 8
    micro_batch: int = 16
    sequence_length: int = 256
    activation_checkpointing: bool = False
    cpu_offload: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What there is to train on.

    Attributes:
        device_bytes: Memory of the device of one rank; with `host` that part of the
            node's memory that a rank may take.
        ranks: Ranks that train together.
        ranks_per_node: How many of them share a node.
        host: Whether the device is the processor.
        host_bytes: Memory of a node, for what is offloaded; None: not known.
    """

    device_bytes: int
    ranks: int
    ranks_per_node: int
    host: bool = False
    host_bytes: int | None = None

    @property
    def usable(self) -> int:
        """Bytes of a device without the margin."""
        return int(self.device_bytes * (1 - MARGIN))

    @property
    def usable_host(self) -> int | None:
        """Bytes of a node's memory for one rank, without the margin."""
        if self.host_bytes is None:
            return None
        return int(self.host_bytes * (1 - MARGIN)) // self.ranks_per_node


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What fits.

    Attributes:
        sharding: "none", "ddp", "zero1", "fsdp", "deepspeed-1" to "-3".
        micro_batch: Examples of one pass on one rank.
        accumulation: Passes of one optimizer step on the rank that has most.
        activation_checkpointing: Whether layers are computed twice.
        cpu_offload: Whether weights and optimizer stay in the node's memory.
        parts: The memory of the fullest rank.
        why: The reason, as a sentence.
    """

    sharding: str
    micro_batch: int
    accumulation: int
    activation_checkpointing: bool
    cpu_offload: bool
    parts: Parts
    why: str


def fit(shape: ModelShape, wants: Wants, machine: Machine) -> Choice | None:
    """Return the way that moves least among those that fit; None: none does.

    Ways are tried in the order of what they cost: less sharding before more; smaller
    passes before activations that are computed twice; these before weights that come
    over the bus. Passes of fewer than `BUSY` tokens come after all shardings with more.
    """
    for setting in settings(wants, machine):
        parts = predict(shape, setting)
        if fits(shape, setting, parts, machine):
            return Choice(
                sharding=setting.sharding,
                micro_batch=setting.micro_batch,
                accumulation=setting.accumulation,
                activation_checkpointing=setting.activation_checkpointing,
                cpu_offload=setting.cpu_offload,
                parts=parts,
                why=_why(shape, wants, setting, machine),
            )
    return None


def fits(shape: ModelShape, setting: Setting, parts: Parts, machine: Machine) -> bool:
    """Tell whether a way to train fits into device and node."""
    if parts.total > machine.usable:
        return False
    room = machine.usable_host
    return room is None or machine.host or host_memory(shape, setting) <= room


def settings(wants: Wants, machine: Machine) -> Iterator[Setting]:
    """Yield the ways to train that are allowed, the cheapest first."""
    most = min(wants.micro_batch, _share(wants, machine))
    least = min(most, -(-BUSY // wants.sequence_length))
    if wants.sharding != "auto":
        yield _sized(_asked(wants, machine, wants.sharding), wants, most)
        return
    for checkpointing, offload in _savings(wants, machine):
        for sizes in (range(most, least - 1, -1), range(least - 1, 0, -1)):
            for sharding in _ladder(machine):
                way = replace(
                    _asked(wants, machine, sharding),
                    activation_checkpointing=checkpointing,
                    cpu_offload=offload,
                )
                if sharding == "fsdp" or not offload:
                    yield from (_sized(way, wants, size) for size in sizes)


def _share(wants: Wants, machine: Machine) -> int:
    """Return the examples of a step that the rank with most of them has."""
    return -(-wants.batch // machine.ranks)


def _ladder(machine: Machine) -> tuple[str, ...]:
    """Return the shardings, those first that move least."""
    return ("none",) if machine.ranks == 1 else _LADDER


def _savings(wants: Wants, machine: Machine) -> list[tuple[bool, bool]]:
    """Return whether to compute activations twice, and whether to offload, in turn."""
    spread = machine.ranks > 1
    asked = wants.cpu_offload and spread
    ways = [(wants.activation_checkpointing, asked), (True, asked)]
    if spread and not machine.host:
        ways.append((True, True))
    return list(dict.fromkeys(ways))


def _asked(wants: Wants, machine: Machine, sharding: str) -> Setting:
    return Setting(
        sharding=sharding,
        precision=wants.precision,
        optimizer=wants.optimizer,
        micro_batch=1,
        sequence_length=wants.sequence_length,
        ranks=machine.ranks,
        activation_checkpointing=wants.activation_checkpointing,
        cpu_offload=wants.cpu_offload,
        host=machine.host,
    )


def _sized(way: Setting, wants: Wants, size: int) -> Setting:
    each = -(-wants.batch // way.ranks)
    return replace(way, micro_batch=size, accumulation=-(-each // size))


def _why(shape: ModelShape, wants: Wants, setting: Setting, machine: Machine) -> str:
    """Say what the next cheaper way would have taken."""
    if wants.sharding != "auto":
        return f"{setting.sharding} was asked for, and fits."
    ladder = _ladder(machine)
    if len(ladder) == 1:
        return "One rank has nobody to share the model with."
    if setting.sharding == ladder[0]:
        return f"{setting.sharding} moves least, and fits."
    other = ladder[ladder.index(setting.sharding) - 1]
    needs = predict(shape, replace(setting, sharding=other, cpu_offload=False)).total
    return (
        f"{other} would take {format_size(needs)} with the same passes; "
        f"{format_size(machine.usable)} may be used."
    )


def nearest(shape: ModelShape, wants: Wants, machine: Machine) -> tuple[Parts, str]:
    """Return the smallest of the allowed ways, and why it is too large."""
    ways = [(predict(shape, one), one) for one in settings(wants, machine)]
    parts, way = min(ways, key=lambda pair: pair[0].total)
    room = machine.usable_host
    if parts.total <= machine.usable and room is not None:
        return parts, (
            f"Offloading takes {format_size(host_memory(shape, way))} of a node's "
            f"memory for each rank, and {format_size(room)} may be used."
        )
    passes = "one example" if way.micro_batch == 1 else f"{way.micro_batch} examples"
    ranks = "one rank" if machine.ranks == 1 else f"{machine.ranks} ranks"
    return parts, (
        f"Even with {way.sharding} over {ranks} and passes of {passes} "
        f"a rank takes {format_size(parts.total)}, and {format_size(machine.usable)} "
        f"of {format_size(machine.device_bytes)} may be used."
    )
