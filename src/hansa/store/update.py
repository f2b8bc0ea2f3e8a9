"""Updates: written by a job at a facility, verified by the server before use.

An update holds deltas ``w_local - w_base`` of every floating tensor, computed in fp32
and stored in the update's dtype, and a manifest with what the training measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from hansa.core.errors import IntegrityError, StoreError, UpdateRejected
from hansa.core.files import FileRecord
from hansa.store.atomic import new_directory
from hansa.store.dtypes import BLOCK, Array, Dtype, convert, first_not_finite, stored
from hansa.store.folder import TensorFolder, reader
from hansa.store.manifest import (
    TensorEntry,
    UpdateManifest,
    VersionManifest,
    checked,
    read_update_manifest,
    write_manifest,
)
from hansa.store.tensorfile import TensorFile, TensorInfo, TensorWriter, scratch
from hansa.store.verify import check_names, check_record

SHARD_BYTES: Final = 5_000_000_000


class BaseReader(Protocol):
    """What `deltas` needs of a base version; a `TensorFolder` has it."""

    def read(self, name: str) -> Array:
        """Return one whole tensor in its stored dtype."""
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
        before = base.read(name)
        if before.shape != value.shape:
            raise UpdateRejected(
                f"Tensor {name!r} has shape {list(value.shape)}; in the base version "
                f"it has {list(before.shape)}."
            )
        delta = np.empty(value.shape, np.float32)
        convert(value, delta)
        delta -= before.astype(np.float32)
        yield name, delta


def write_update(
    directory: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[tuple[str, Array]],
    measured: Measured,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> UpdateManifest:
    """Write an update; it appears under its final name when it is whole.

    Args:
        directory: Final name, as ``<mailbox>/updates/<assignment>``.
        shapes: Name and shape of every tensor, in the order in which they come;
            `TensorFolder.shapes` of the base version.
        tensors: Name and fp32 delta, in that order; one at a time is in memory.
        measured: For the manifest.
        dtype: Format to store in, rounding to nearest even.
        shard_bytes: No file gets larger, unless one tensor alone is.

    Raises:
        UpdateRejected: A number is not finite, here or after rounding.
        StoreError: Tensors come in another order or shape, or the update exists.
        StorageFull: No space; nothing is left behind.
    """
    form = stored(dtype)
    shards = _shards(shapes, form, shard_bytes)
    source = iter(tensors)
    files: dict[str, FileRecord] = {}
    with new_directory(directory) as aside:
        for name, infos in shards.items():
            files[name] = _write_shard(aside / name, infos, source)
        if (extra := next(source, None)) is not None:
            raise StoreError(f"{directory}: tensor {extra[0]!r} was not announced.")
        entries = {
            info.name: TensorEntry(file=name, shape=info.shape, dtype=form.name)
            for name, infos in shards.items()
            for info in infos
        }
        manifest = checked(
            UpdateManifest,
            {
                "kind": "update",
                "dtype": form.name,
                "tensors": entries,
                "files": files,
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


def verify_update(
    directory: Path, version: VersionManifest, expected_base: int
) -> UpdateManifest:
    """Check everything about an update before it may enter a sum.

    Cheap checks come first; then one pass over the bytes compares the hashes and
    looks for numbers that are not finite.

    Args:
        directory: Where the update (or evaluation) lies.
        version: Manifest of the base version, whose names, shapes and hash count.
        expected_base: The version that the job has bound.

    Raises:
        IntegrityError: Bytes differ from the manifest; fetching again may help.
        UpdateRejected: The content must not enter a model.
        StoreError: There is no update.
    """
    manifest = read_update_manifest(directory)
    if manifest.base != expected_base:
        raise UpdateRejected(
            f"{directory} is of base version {manifest.base}; the job has bound "
            f"version {expected_base}."
        )
    if manifest.base_sha256 not in (None, version.sha256):
        raise UpdateRejected(
            f"{directory} was trained from another version {expected_base}: from "
            f"sha256 {str(manifest.base_sha256)[:12]}…; here it is "
            f"{version.sha256[:12]}….",
            hint="Was this run id used before? Remove the run's directory from the "
            "facility's mailbox, or take another run id.",
        )
    check_names(directory, manifest.files)
    if manifest.kind == "evaluation":
        if manifest.files:
            raise UpdateRejected(f"{directory}: an evaluation has no files.")
        return manifest
    with reader(directory) as folder:
        _check_tensors(folder, manifest, version)
        for name, record in manifest.files.items():
            check_record(directory / name, _scan(directory / name), record)
    return manifest


def _shards(
    shapes: Mapping[str, Sequence[int]], form: Dtype, shard_bytes: int
) -> dict[str, list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for name, shape in shapes.items():
        info = TensorInfo(name=name, shape=tuple(shape), dtype=form)
        if shards[-1] and size + info.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += info.bytes
    return {
        f"update-{number:05d}-of-{len(shards):05d}.safetensors": infos
        for number, infos in enumerate(shards, start=1)
    }


def _write_shard(
    path: Path, infos: Sequence[TensorInfo], source: Iterator[tuple[str, Array]]
) -> FileRecord:
    with TensorWriter(path, infos) as writer:
        for info in infos:
            name, value = next(source, (None, np.empty(0, np.float32)))
            if name != info.name or value.shape != info.shape:
                raise StoreError(
                    f"Tensor {info.name!r} of shape {list(info.shape)} is due; "
                    f"{name!r} of shape {list(value.shape)} came."
                )
            _write_tensor(writer, info, np.ascontiguousarray(value).reshape(-1))
    return writer.record


def _write_tensor(writer: TensorWriter, info: TensorInfo, flat: Array) -> None:
    narrow = np.empty(min(BLOCK, len(flat)), info.dtype.numpy)
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        target = narrow[: len(block)]
        convert(block, target)
        _refuse_not_finite(writer.path, info.name, start, target)
        writer.write(target)


def _check_tensors(
    folder: TensorFolder, manifest: UpdateManifest, version: VersionManifest
) -> None:
    found = {
        info.name: TensorEntry(file=file, shape=info.shape, dtype=info.dtype.name)
        for file, infos in folder.layout.items()
        for info in infos
    }
    if found != manifest.tensors or {*folder.layout} != {*manifest.files}:
        raise IntegrityError(f"{folder.directory}: the files differ from the manifest.")
    due = version.floating_shapes()
    for name in sorted(due.keys() | found.keys()):
        why = _misfit(due.get(name), found.get(name), manifest.dtype)
        if why:
            raise UpdateRejected(f"{folder.directory}: tensor {name!r} {why}.")


def _misfit(
    due: tuple[int, ...] | None,
    found: TensorEntry | None,
    dtype: str | None,
) -> str | None:
    if found is None:
        return "is missing"
    if due is None:
        return "is none of the base's floating tensors"
    if found.shape != due:
        return f"has shape {list(found.shape)}; in the base it is {list(due)}"
    if found.dtype != dtype:
        return f"is {found.dtype}; the update is {dtype}"
    return None


def _scan(path: Path) -> FileRecord:
    """Return the hash of all bytes of a file, having seen that all are finite."""
    raw = scratch()
    with TensorFile(path) as file:
        digest, size = hashlib.sha256(file.header), len(file.header)
        for info in file.tensors.values():
            for start, block in file.blocks(info, raw):
                digest.update(block.view(np.uint8).data)
                size += block.nbytes
                _refuse_not_finite(path, info.name, start, block)
    return FileRecord(bytes=size, sha256=digest.hexdigest())


def _refuse_not_finite(path: Path, name: str, start: int, block: Array) -> None:
    bad = first_not_finite(block)
    if bad is not None:
        raise UpdateRejected(
            f"{path}: tensor {name!r} is {block[bad]} at flat index {start + bad}.",
            hint="The training diverged; lower its learning rate.",
        )
