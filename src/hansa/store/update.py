"""Updates, as a job at a facility writes them; `admission` is the other side.

An update holds deltas ``w_local - w_base`` of every floating tensor, computed in fp32
and stored in the update's dtype, and a manifest with what the training measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np

from hansa.core.errors import StoreError, UpdateRejected
from hansa.core.files import FileRecord
from hansa.store import codec
from hansa.store.atomic import new_directory
from hansa.store.codec import CHUNK, Encoder
from hansa.store.dtypes import (
    BLOCK,
    BY_NAME,
    Array,
    Dtype,
    convert,
    first_not_finite,
    sent,
)
from hansa.store.manifest import (
    PACKED_SUFFIX,
    TensorEntry,
    UpdateManifest,
    checked,
    write_manifest,
)
from hansa.store.packing import PackedWriter
from hansa.store.tensorfile import TensorInfo, TensorWriter

SHARD_BYTES: Final = 5_000_000_000

Compress = Literal["none", "zstd"]

Keep = Callable[[Array], None]
"""Takes the next numbers, flat, fp32, in the order of the tensors."""

Lost = Callable[[Path], AbstractContextManager[Keep]]
"""Keeps what an update loses by rounding, beside it: called with the directory that
is being written, which gets its final name only when that is left."""


class BaseReader(Protocol):
    """What `deltas` needs of a base version; a `TensorFolder` has it."""

    def info(self, name: str) -> TensorInfo:
        """Return shape and dtype of a tensor."""
        ...

    def read_floats(self, name: str, start: int, out: Array) -> None:
        """Read numbers of a tensor into flat fp32."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a job reports beside its tensors; the manifest's fields of the same name.

    Attributes:
        assignment: Id of the order.
        facility: Who did it.
        base: The version trained from, or the version evaluated.
        base_sha256: `VersionManifest.sha256` of that version; None where the writer
            does not know it.
        steps: Optimizer steps done.
        samples: Training samples seen.
        partial: Whether fewer steps than ordered were done.
        metrics: Numbers by name, as `train_loss`, `eval_loss`.
        losses: Test loss by task.
        timings: Seconds by name.
        training: How it was trained, as ``{"sharding": "fsdp"}``.
    """

    assignment: str
    facility: str
    base: int
    base_sha256: str | None = None
    steps: int = 0
    samples: int = 0
    partial: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)


def deltas(
    base: BaseReader, local: Iterable[tuple[str, Array]]
) -> Iterator[tuple[str, Array]]:
    """Yield (name, local minus base) in fp32, one tensor at a time.

    Args:
        base: The version that was trained from.
        local: Name and value of the floating tensors after training, any float dtype.

    Raises:
        UpdateRejected: A tensor's shape is not that of the base.
    """
    for name, value in local:
        shape = base.info(name).shape
        if shape != value.shape:
            raise UpdateRejected(
                f"Tensor {name!r} has shape {list(value.shape)}; in the base version "
                f"it has {list(shape)}."
            )
        delta = np.empty(shape, np.float32)
        base.read_floats(name, 0, delta.reshape(-1))
        with np.errstate(over="ignore", invalid="ignore"):
            # `dtype`: the local value is cast first, by small pieces.
            np.subtract(value, delta, out=delta, dtype=np.float32, casting="unsafe")
        yield name, delta


def write_update(
    directory: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[tuple[str, Array]],
    measured: Measured,
    *,
    dtype: str = "bfloat16",
    compress: Compress = "none",
    shard_bytes: int = SHARD_BYTES,
    lost: Lost | None = None,
) -> UpdateManifest:
    """Write an update; it appears under its final name when it is whole.

    Args:
        directory: Final name, as ``<mailbox>/updates/<assignment>``.
        shapes: Name and shape of every tensor, in the order in which they come;
            `VersionManifest.floating_shapes` of the base version.
        tensors: Name and fp32 delta, in that order; one at a time is in memory.
        measured: For the manifest.
        dtype: Format to store in, rounding to nearest even; int8: see `codec`.
        compress: How files travel; zstd: see `packing`.
        shard_bytes: No file gets larger, unless one tensor alone is.
        lost: Keeps what rounding to int8 loses; not called for other formats.

    Raises:
        UpdateRejected: A number is not finite, here or after rounding.
        StoreError: Tensors come in another order or shape, or the update exists.
        StorageFull: No space; nothing is left behind.
    """
    form = sent(dtype)
    coded = form.name == codec.NAME
    shards = _shards(shapes, form, shard_bytes)
    source = iter(tensors)
    with (
        new_directory(directory) as aside,
        lost(aside) if coded and lost else nullcontext() as keep,
    ):
        write = _Coding(measured.assignment, keep) if coded else _write_plain
        files = {
            name: _write_shard(aside / name, groups, source, write, compress)
            for name, groups in shards.items()
        }
        if (extra := next(source, None)) is not None:
            raise StoreError(f"{directory}: tensor {extra[0]!r} was not announced.")
        form_fields = {"dtype": form.name, "block": codec.NUMBERS if coded else None}
        # Only now: the times in `measured` are complete when the last tensor has come.
        manifest = checked(
            UpdateManifest,
            {
                "kind": "update",
                "tensors": _entries(shards),
                **form_fields,
                **_records(files),
                **asdict(measured),
            },
        )
        write_manifest(aside, manifest)
    return manifest


def write_evaluation(directory: Path, measured: Measured) -> UpdateManifest:
    """Write what an evaluation measured: a manifest without tensors.

    Raises:
        UpdateRejected: A number is not finite.
        StoreError: It exists.
        StorageFull: No space; nothing is left behind.
    """
    manifest = checked(UpdateManifest, {"kind": "evaluation", **asdict(measured)})
    with new_directory(directory) as aside:
        write_manifest(aside, manifest)
    return manifest


Group = tuple[TensorInfo, ...]
"""What a tensor becomes in a file: itself, or codes and scales."""

Writer = TensorWriter | PackedWriter

Write = Callable[[Writer, Group, Array], None]
"""Writes one tensor, flat, in fp32, as what it becomes."""


def stored_as(name: str, shape: Sequence[int], dtype: str, block: int | None) -> Group:
    """Return what one tensor of an update becomes in its file, in order.

    Args:
        name: The tensor.
        shape: Its shape.
        dtype: The update's.
        block: Numbers that share a scale, if there are scales.
    """
    info = TensorInfo(name=name, shape=tuple(shape), dtype=BY_NAME[dtype])
    if dtype != codec.NAME or block is None:
        return (info,)
    scales = TensorInfo(
        name=name + codec.SCALE,
        shape=(codec.blocks_of(info.elements, block),),
        dtype=BY_NAME["float32"],
    )
    return info, scales


def _shards(
    shapes: Mapping[str, Sequence[int]], form: Dtype, shard_bytes: int
) -> dict[str, list[Group]]:
    shards: list[list[Group]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if name.endswith(codec.SCALE) and form.name == codec.NAME:
            raise StoreError(
                f"A tensor is called {name!r}; updates in int8 need such names.",
                hint="Send another `update.dtype`.",
            )
        group = stored_as(name, shape, form.name, codec.NUMBERS)
        more = sum(info.bytes for info in group)
        if shards[-1] and size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(group)
        size += more
    return {
        f"update-{number:05d}-of-{len(shards):05d}.safetensors": groups
        for number, groups in enumerate(shards, start=1)
    }


def _entries(shards: Mapping[str, Sequence[Group]]) -> dict[str, TensorEntry]:
    return {
        info.name: TensorEntry(file=file, shape=info.shape, dtype=info.dtype.name)
        for file, groups in shards.items()
        for group in groups
        for info in group
    }


def _write_shard(
    path: Path,
    groups: Sequence[Group],
    source: Iterator[tuple[str, Array]],
    write: Write,
    compress: Compress,
) -> Writer:
    """Write one file, packed or not; return its writer, which knows the hashes."""
    infos = [info for group in groups for info in group]
    with _writer(path, infos, compress) as writer:
        for group in groups:
            write(writer, group, _due(group[0], source))
    return writer


def _records(writers: Mapping[str, Writer]) -> dict[str, dict[str, FileRecord]]:
    """Return the manifest's `files` and `unpacked`."""
    return {
        "files": {writer.path.name: writer.record for writer in writers.values()},
        "unpacked": {
            name: writer.unpacked
            for name, writer in writers.items()
            if isinstance(writer, PackedWriter)
        },
    }


def _writer(path: Path, infos: Sequence[TensorInfo], compress: Compress) -> Writer:
    if compress == "zstd":
        return PackedWriter(path.with_name(path.name + PACKED_SUFFIX), infos)
    return TensorWriter(path, infos)


def _due(info: TensorInfo, source: Iterator[tuple[str, Array]]) -> Array:
    """Return the next tensor, flat; it must be the one that was announced."""
    name, value = next(source, (None, np.empty(0, np.float32)))
    if name != info.name or value.shape != info.shape:
        raise StoreError(
            f"Tensor {info.name!r} of shape {list(info.shape)} is due; "
            f"{name!r} of shape {list(value.shape)} came."
        )
    return np.ascontiguousarray(value).reshape(-1)


def _write_plain(writer: Writer, group: Group, flat: Array) -> None:
    (info,) = group
    narrow = np.empty(min(BLOCK, len(flat)), info.dtype.numpy)
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        target = narrow[: len(block)]
        convert(block, target)
        refuse_not_finite(writer.path, info.name, start, target)
        writer.write(target)


class _Coding:
    """Writes tensors as codes and scales; passes on what that loses if it is kept."""

    def __init__(self, assignment: str, keep: Keep | None) -> None:
        self._assignment = assignment
        self._keep = keep
        self._lost = np.empty(CHUNK, np.float32)

    def __call__(self, writer: Writer, group: Group, flat: Array) -> None:
        encoder = Encoder(self._assignment, group[0].name)
        scales = np.empty(group[1].elements, np.float32)
        for start in range(0, len(flat), CHUNK):
            block = flat[start : start + CHUNK]
            first = start // codec.NUMBERS
            each = scales[first : first + codec.blocks_of(len(block))]
            each[:] = codec.scales_of(block)
            if not (each <= codec.LARGEST).all():
                refuse_not_finite(writer.path, group[0].name, start, block)
                raise _too_large(writer.path, group[0].name)
            codes = encoder.encode(block, each)
            writer.write(codes)
            if self._keep is not None:
                lost = self._lost[: len(block)]
                codec.decode(codes, each, lost)
                np.subtract(block, lost, out=lost)
                self._keep(lost)
        writer.write(scales)


def refuse_not_finite(path: Path, name: str, start: int, block: Array) -> None:
    """Refuse numbers that no model must take up.

    Args:
        path: The file, for the message.
        name: The tensor.
        start: Index of the first number, in flat order.
        block: Some of its numbers, flat.

    Raises:
        UpdateRejected: One is NaN or infinite.
    """
    bad = first_not_finite(block)
    if bad is not None:
        raise UpdateRejected(
            f"{path}: tensor {name!r} is {block[bad]} at flat index {start + bad}.",
            hint="The training diverged; lower its learning rate.",
        )


def _too_large(path: Path, name: str) -> UpdateRejected:
    return UpdateRejected(
        f"{path}: tensor {name!r} has numbers too large for int8.",
        hint="The training diverged; lower its learning rate.",
    )
