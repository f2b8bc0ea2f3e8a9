"""An index of the lines of JSON files: where each begins, its group and its split.

It is built once, by reading every line, and kept in the task's cache; then a line can
be read by itself, and a set may be far larger than memory: 21 bytes a line are mapped,
of which the kernel keeps what is in use.

Any number of processes, on any number of nodes, may look for an index at once. Each
that finds none builds one in a folder of its own and renames that; a folder that is
there already is never replaced, so nobody's mapped file changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import SpecError

_LINE = np.dtype(
    [
        ("at", "<i8"),
        ("bytes", "<u4"),
        ("line", "<u4"),
        ("group", "<u4"),
        ("split", "u1"),
    ]
)
_LINES, _NAMES = "lines.npy", "names.json"
_LONGEST = 1 << 26  # bytes of a line; a file without lines must not fill the memory
_FORM = 1  # of the index; another one is built anew


@dataclass(frozen=True, slots=True)
class Head:
    """What the index keeps of a line beside its place: the names of two sets."""

    group: str
    split: str


Read = Callable[[bytes, str], Head]
"""Returns the head of a line, whose place ("train.jsonl:17") is for errors."""


@dataclass(frozen=True, slots=True)
class LineIndex:
    """The lines of one file that are not empty.

    Attributes:
        path: The file.
        lines: Place, bytes, number, group and split of each.
        groups: Names of the groups; a line has the index of its own.
        splits: Names of the splits.
        stamp: Size in bytes and time of the last change, in ns, that the file had.
    """

    path: Path
    lines: NDArray[np.void]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    stamp: tuple[int, int]

    def check(self, told: os.stat_result) -> None:
        """Raise SpecError if that is not the file as the index knows it."""
        _check(self.path, told, self.stamp)

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the number of lines by split and group."""
        many = max(len(self.groups), 1)
        both = self.lines["split"].astype(np.int64) * many + self.lines["group"]
        found, sizes = np.unique(both, return_counts=True)
        return {
            (self.splits[key // many], self.groups[key % many]): int(size)
            for key, size in zip(found.tolist(), sizes.tolist(), strict=True)
        }

    def of(self, split: str, group: str) -> NDArray[np.int64]:
        """Return which lines belong to a group of a split."""
        if split not in self.splits or group not in self.groups:
            return np.empty(0, np.int64)
        return np.flatnonzero(
            (self.lines["split"] == self.splits.index(split))
            & (self.lines["group"] == self.groups.index(group))
        )


def line_index(path: Path, cache: Path, form: str, read: Read) -> LineIndex:
    """Return the index of a file; it is built if the cache has none of it.

    The file is known by path, size and time of its last change.

    Args:
        path: The file.
        cache: Writable folder, which many may share.
        form: What `read` does, in a word: an index is used for this alone.
        read: Called for each line that is not empty; it raises what is wrong with one.

    Raises:
        SpecError: The file can't be read, or changes; a line is wrong; the index is
            damaged.
    """
    stamp = _stamp(_stat(path))
    known = [str(path.resolve()), *stamp, _FORM, form]
    name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    folder = cache / f"{path.stem[:40]}-{name}.index"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _build(path, folder, read, stamp)
    try:
        names = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
        lines = np.load(folder / _LINES, mmap_mode="r", allow_pickle=False)
        groups, splits = tuple(names["groups"]), tuple(names["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(
            f"The index of {path} is damaged: {error}.", hint=f"Remove {folder}."
        ) from error
    return LineIndex(path, lines, groups, splits, stamp)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise SpecError(f"{path} can't be read: {error.strerror}.") from error


def _stamp(told: os.stat_result) -> tuple[int, int]:
    return told.st_size, told.st_mtime_ns


def _check(path: Path, told: os.stat_result, stamp: tuple[int, int]) -> None:
    if _stamp(told) != stamp:
        raise SpecError(
            f"{path} was changed while it was in use.",
            hint="Give changed data a new name; the next job indexes it anew.",
        )


def _build(path: Path, folder: Path, read: Read, stamp: tuple[int, int]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        groups: dict[str, int] = {}
        splits: dict[str, int] = {}
        columns = [array(kind) for kind in "qIIIB"]
        for at, number, line in _lines(path):
            head = read(line, f"{path}:{number}")
            group = groups.setdefault(head.group, len(groups))
            split = splits.setdefault(head.split, len(splits))
            row = (at, len(line), number, group, split)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        _write(aside, columns, list(groups), list(splits))
        _check(path, _stat(path), stamp)
        os.rename(aside, folder)  # noqa: PTH104 - Path.rename may replace
    except OSError as error:
        if not folder.is_dir():  # else another process was quicker
            raise SpecError(f"The index of {path} can't be made: {error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield place, number and bytes of each line that is not empty."""
    at = 0
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(_LONGEST + 1), b"")
        for number, line in enumerate(lines, start=1):
            if len(line) > _LONGEST:
                raise SpecError(
                    f"{path}:{number} is longer than {_LONGEST >> 20} MiB.",
                    hint="Each line must be one example, as JSON.",
                )
            if line.strip():
                yield at, number, line
            at += len(line)


def _write(
    folder: Path, columns: list[array[int]], groups: list[str], splits: list[str]
) -> None:
    folder.chmod(0o755)  # mkdtemp's is for one user; a cache may be a project's
    lines = np.lib.format.open_memmap(
        folder / _LINES, mode="w+", dtype=_LINE, shape=(len(columns[0]),)
    )
    for name, column in zip(_LINE.names or (), columns, strict=True):
        lines[name] = np.frombuffer(column, dtype=np.dtype(column.typecode))
    lines.flush()
    text = json.dumps({"groups": groups, "splits": splits})
    (folder / _NAMES).write_text(text, encoding="utf-8")
