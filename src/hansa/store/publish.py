"""Writing the directory of a version: what is published, and its fp32 master."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np

from hansa.core.commands import Term
from hansa.core.errors import UpdateRejected
from hansa.core.files import FileRecord
from hansa.store.atomic import copy_file, link_file, new_directory
from hansa.store.dtypes import BLOCK, BY_NAME, Array, Dtype, convert, first_not_finite
from hansa.store.manifest import TensorEntry, VersionManifest, write_manifest
from hansa.store.sums import WeightedSum
from hansa.store.tensorfile import TensorInfo, TensorWriter

INDEX: Final = "model.safetensors.index.json"
"""Says which file has which tensor, so that `from_pretrained` opens a version."""

Layout = Mapping[str, Sequence[TensorInfo]]


def write_version(
    *,
    version: int,
    published: Path,
    master: Path | None,
    dtype: Dtype,
    layout: Layout,
    values: WeightedSum,
    assets: Mapping[Path, FileRecord],
    terms: Sequence[Term],
) -> VersionManifest:
    """Write a version, in one pass over its terms.

    Args:
        version: Its number.
        published: Final name of its directory.
        master: Final name of the fp32 master's directory, which appears first, so
            that a published version always has one; None for no master.
        dtype: Format of the published floating tensors.
        layout: Files to write and the base's tensors in each.
        values: Gives the numbers.
        assets: Files to carry over, with what their manifest says.
        terms: For the manifest.

    Raises:
        UpdateRejected: The result has a NaN or an infinity.
        StorageFull: No space; nothing is left behind.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(new_directory(published))
        folders = [(folder, dtype)]
        if master is not None:
            folders.append(
                (stack.enter_context(new_directory(master)), BY_NAME["float32"])
            )
        records: list[dict[str, FileRecord]] = [{} for _ in folders]
        for file, infos in layout.items():
            written = _write_file(file, infos, folders, values)
            for found, record in zip(records, written, strict=True):
                found[file] = record
        manifests = [
            _manifest(version, form, layout, found, terms)
            for (_, form), found in zip(folders, records, strict=True)
        ]
        # The first version's assets lie in a folder that others may still write.
        place = link_file if terms else copy_file
        for source, record in assets.items():
            place(source, folder / source.name)
            records[0][source.name] = record
        names = tuple(sorted(source.name for source in assets))
        manifests[0] = manifests[0].model_copy(
            update={"files": records[0], "assets": names}
        )
        for (directory, _), manifest in zip(folders, manifests, strict=True):
            write_manifest(directory, manifest)
    return manifests[0]


def index_json(layout: Layout, dtype: Dtype) -> str:
    """Return the text of `INDEX` for a layout."""
    cast = {
        file: [_cast(info, dtype) for info in infos] for file, infos in layout.items()
    }
    size = sum(info.bytes for infos in cast.values() for info in infos)
    files = {info.name: file for file, infos in cast.items() for info in infos}
    content = {"metadata": {"total_size": size}, "weight_map": files}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _cast(info: TensorInfo, dtype: Dtype) -> TensorInfo:
    return replace(info, dtype=dtype) if info.dtype.floating else info


def _write_file(
    file: str,
    infos: Sequence[TensorInfo],
    folders: Sequence[tuple[Path, Dtype]],
    values: WeightedSum,
) -> list[FileRecord]:
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                TensorWriter(folder / file, [_cast(info, dtype) for info in infos])
            )
            for folder, dtype in folders
        ]
        # Entered last, so that nothing is being written when the writers close.
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in writers]
        narrow = cycle([np.empty(BLOCK, folders[0][1].numpy) for _ in range(2)])
        pending: list[Future[None]] = []
        for info, start, block in _blocks(infos, values):
            outs = [_out(info, block, dtype, narrow) for _, dtype in folders]
            _check_finite(info, start, outs[0])
            # One block is written while the next is added up; no more, because
            # there are two buffers.
            for future in pending:
                future.result()
            pending = [
                thread.submit(writer.write, out)
                for thread, writer, out in zip(threads, writers, outs, strict=True)
            ]
        for future in pending:
            future.result()
    # Only now, after leaving the writers, is everything on disk and hashed.
    return [writer.record for writer in writers]


def _blocks(
    infos: Sequence[TensorInfo], values: WeightedSum
) -> Iterator[tuple[TensorInfo, int, Array]]:
    """Yield (tensor, index of the first number, block) over a whole file."""
    for info in infos:
        start = 0
        for block in values.blocks(info):
            yield info, start, block
            start += len(block)


def _out(
    info: TensorInfo, block: Array, dtype: Dtype, narrow: Iterator[Array]
) -> Array:
    if not info.dtype.floating or block.dtype == dtype.numpy:
        return block
    target = next(narrow)[: len(block)]
    convert(block, target)
    return target


def _check_finite(info: TensorInfo, start: int, block: Array) -> None:
    """Check what is published: it is not finite wherever the master is not."""
    bad = first_not_finite(block)
    if bad is not None:
        raise UpdateRejected(
            f"Tensor {info.name!r} of the new version would be {block[bad]} at flat "
            f"index {start + bad}.",
            hint="Look at the updates' losses: one of them has probably diverged; "
            "leave it out, or lower its learning rate.",
        )


def _manifest(
    version: int,
    dtype: Dtype,
    layout: Layout,
    files: Mapping[str, FileRecord],
    terms: Sequence[Term],
) -> VersionManifest:
    tensors = {
        info.name: TensorEntry(
            file=file, shape=info.shape, dtype=_cast(info, dtype).dtype.name
        )
        for file, infos in layout.items()
        for info in infos
    }
    return VersionManifest(
        version=version,
        dtype=dtype.name,
        tensors=tensors,
        files=dict(files),
        terms=tuple(terms),
    )
