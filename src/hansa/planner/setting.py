"""How a model is trained: all that its memory depends on."""

from __future__ import annotations

from dataclasses import dataclass

WIDE = 4
"""Bytes of float32."""
HALF = 2
"""Bytes of bfloat16."""
HEAP_BLOCK = 32 * 2**20
"""Bytes of a block that goes back to the system at once when it is freed (glibc's
DEFAULT_MMAP_THRESHOLD_MAX); smaller ones stay with the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How a model is trained, all that memory depends on.

    Attributes:
        sharding: "none", "ddp", "zero1", "fsdp", "deepspeed-1" to "-3".
        precision: "float32", "bfloat16", or "mixed": bfloat16 with float32 weights in
            the optimizer.
        optimizer: "adamw" or "sgd" (without momentum).
        micro_batch: Examples of one pass.
        sequence_length: Tokens of each.
        ranks: Ranks that train together.
        accumulation: Passes of one step.
        activation_checkpointing: Whether layers are computed twice.
        cpu_offload: Whether weights and optimizer stay in the node's memory (fsdp).
        answer: Tokens of each example that have a loss; None: all.
        host: Whether the device is the processor.
        base: Bytes of a process before there is a model; None: a usual one.
    """

    sharding: str
    precision: str
    optimizer: str
    micro_batch: int
    sequence_length: int
    ranks: int = 1
    accumulation: int = 1
    activation_checkpointing: bool = False
    cpu_offload: bool = False
    answer: int | None = None
    host: bool = False
    base: int | None = None

    @property
    def width(self) -> int:
        """Bytes of a number in the arithmetic."""
        return WIDE if self.precision == "float32" else HALF

    @property
    def tokens(self) -> int:
        """Tokens of one pass."""
        return self.micro_batch * self.sequence_length
