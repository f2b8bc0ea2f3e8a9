"""The task `instruct`: a user's own instructions, as JSON lines, of any size.

The source is one of:

- a file ``*.jsonl``; each line may name its ``split`` ("train" if not);
- a folder with ``train.jsonl`` and ``test.jsonl``;
- a folder with ``train/<group>.jsonl`` and ``test/<group>.jsonl``.

A line is one of ``{"prompt": ..., "completion": ...}``, ``{"input": ..., "output":
...}`` and ``{"messages": [{"role": ..., "content": ...}, ...]}``, whose last message is
the assistant's. It belongs to the group that its ``group`` or ``task`` says, else to
one with the name of its file (for ``train.jsonl``: of its folder). Other keys are
ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import SpecError
from hansa.core.words import nearest
from hansa.worker.base import Example
from hansa.worker.options import InstructOptions
from hansa.worker.tasks.line_index import Head, LineIndex, line_index
from hansa.worker.tasks.records import SPLITS, json_object, split_of

ROLES = ("system", "user", "assistant", "tool")
_OPEN_FILES = 64
_PAIRS = (("prompt", "completion"), ("input", "output"))


class Instruct:
    """Instructions in files; see `hansa.worker.base.Task`.

    Args:
        source: Folder or file with the data.
        cache: Writable folder, kept between jobs, for the index of the lines.
        options: Limits per group.

    Raises:
        SpecError: There is no source, or no file with lines in it.
    """

    def __init__(
        self, source: Path | None, cache: Path, options: InstructOptions
    ) -> None:
        if source is None:
            raise SpecError(
                "The task instruct needs data.",
                hint="Name a .jsonl file or a folder in `tasks: instruct: data:` of "
                "site.yaml. A tiny-llama, whose tokenizer is made from the task's own "
                "examples, can't be used with it.",
            )
        self._source, self._cache = Path(source), Path(cache)
        self._limits = {"train": options.train_limit, "test": options.test_limit}

    def groups(self) -> Sequence[str]:
        """Return the groups of the training examples, or of all if there are none."""
        train = {group for split, group in self._counts if split == "train"}
        return sorted(train or {group for _, group in self._counts})

    def load(self, split: str, groups: Sequence[str] | None) -> Sequence[Example]:
        """Return the examples of a split, group by group, each by file and line.

        They are read from the files when they are asked for.

        Args:
            split: "train" or "test".
            groups: Only these groups, in this order; None means all that the split has.

        Raises:
            SpecError: No such split or group, a group without examples, or a line is
                wrong; the message names file and line.
        """
        there = sorted(group for part, group in self._counts if part == split)
        if not there:
            raise SpecError(f"instruct has no {split} example.", hint=self._all())
        wanted = there if groups is None else list(dict.fromkeys(groups))
        for group in wanted:
            if group not in there:
                guess = nearest(group, there)
                raise SpecError(
                    f"instruct has no {split} example in a group {group!r}.",
                    hint=(f"Did you mean {guess!r}? " if guess else "") + self._all(),
                )
        parts = []
        for group in wanted:
            found = [(index, index.of(split, group)) for _, index in self._indices]
            parts += _limited([p for p in found if len(p[1])], self._limits.get(split))
        return Lines(parts, self._names)

    @cached_property
    def _indices(self) -> list[tuple[_Reader, LineIndex]]:
        found = []
        for path, split, group in _files(self._source):
            reader = _Reader(split, group)
            form = f"instruct:{split}:{group}"
            found.append((reader, line_index(path, self._cache, form, reader.head)))
        return found

    @cached_property
    def _names(self) -> dict[Path, str]:
        """The group of each file's lines that name none."""
        return {index.path: reader.group for reader, index in self._indices}

    @cached_property
    def _counts(self) -> dict[tuple[str, str], int]:
        counts: dict[tuple[str, str], int] = {}
        for _, index in self._indices:
            for key, size in index.counts().items():
                counts[key] = counts.get(key, 0) + size
        return counts

    def _all(self) -> str:
        """Return what there is, in words."""
        told = [
            f"{group} ({split}: {size})"
            for (split, group), size in sorted(self._counts.items())
        ]
        more = f" and {len(told) - 12} more" if len(told) > 12 else ""
        return f"In {self._source} there are: {', '.join(told[:12]) or 'none'}{more}."


class Lines(Sequence[Example]):
    """Examples that are read from their files one by one.

    Args:
        parts: Files with the lines that are meant, by their place in the index.
        groups: The group of each file's lines that name none.
    """

    def __init__(
        self,
        parts: Sequence[tuple[LineIndex, NDArray[np.int64]]],
        groups: Mapping[Path, str],
    ) -> None:
        self._files: dict[Path, int] = {}
        self._parts, self._groups = list(parts), groups
        self._ends = np.cumsum([len(rows) for _, rows in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self._ends, at, side="right"))
        lines, rows = self._parts[which]
        row = lines.lines[rows[at - (int(self._ends[which]) - len(rows))]]
        return self._read(lines, row)

    def __iter__(self) -> Iterator[Example]:
        return (self[at] for at in range(len(self)))

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)

    def _read(self, index: LineIndex, row: Any) -> Example:
        path = index.path
        try:
            file = self._opened(path)
            index.check(os.fstat(file))
            text = os.pread(file, int(row["bytes"]), int(row["at"]))
        except OSError as error:
            raise SpecError(f"{path} can't be read: {error.strerror}.") from error
        return parse(text, f"{path}:{row['line']}", self._groups[path])

    def _opened(self, path: Path) -> int:
        if path not in self._files:
            if len(self._files) == _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[path]


def parse(line: bytes, place: str, group: str) -> Example:
    """Return the example of a line.

    Args:
        line: The line, UTF-8.
        place: File and number of the line, for errors and for the example.
        group: The example's group, if the line names none.

    Raises:
        SpecError: It is none of the three forms.
    """
    return _example(json_object(line, place), place, group)


def _example(data: Mapping[str, Any], place: str, group: str) -> Example:
    group = _text(data, "group" if "group" in data else "task", place, group)
    # The file's name, not its folders: they may say more than others need to know.
    name = place.rpartition("/")[2]
    if "messages" in data:
        talk = _messages(data["messages"], place)
        return Example(group, talk[:-1], talk[-1]["content"], name)
    for asked, answer in _PAIRS:
        if asked in data and answer in data:
            asks, answers = _text(data, asked, place), _text(data, answer, place)
            return Example(group, asks, answers, name)
    raise SpecError(
        f"{place} has neither prompt and completion, nor input and output, nor "
        "messages.",
        hint='A line is {"prompt": "...", "completion": "..."}, or the like.',
    )


class _Reader:
    """Checks the lines of a file, and says where each belongs."""

    def __init__(self, split: str, group: str) -> None:
        self.split, self.group = split, group

    def head(self, line: bytes, place: str) -> Head:
        """Return group and split of a line; raises SpecError if it is wrong."""
        data = json_object(line, place)
        group = _example(data, place, self.group).task
        split = self.split or split_of(_text(data, "split", place, "train"), place)
        return Head(group, split)


def _files(source: Path) -> list[tuple[Path, str, str]]:
    """Return path, split ("": each line says it) and group's name of all files."""
    if source.is_file():
        return [(source, "", source.stem)]
    found = []
    for split in SPLITS:
        single = source / f"{split}.jsonl"
        if single.is_file():
            found.append((single, split, source.resolve().name))
        found += [
            (path, split, path.stem)
            for path in sorted((source / split).glob("*.jsonl"))
        ]
    if found:
        return found
    raise SpecError(
        f"There is no data of instruct in {source}.",
        hint="Give a .jsonl file, or a folder with train.jsonl and test.jsonl, or with "
        "train/<group>.jsonl and test/<group>.jsonl, in `tasks` of site.yaml.",
    )


def _limited(
    parts: list[tuple[LineIndex, NDArray[np.int64]]], limit: int | None
) -> list[tuple[LineIndex, NDArray[np.int64]]]:
    """Return at most `limit` lines of a group, evenly chosen."""
    total = sum(len(rows) for _, rows in parts)
    if limit is None or total <= limit:
        return parts
    chosen, before, kept = np.arange(limit) * total // limit, 0, []
    for index, rows in parts:
        own = chosen[(chosen >= before) & (chosen < before + len(rows))] - before
        before += len(rows)
        if len(own):
            kept.append((index, rows[own]))
    return kept


def _text(
    data: Mapping[str, Any], key: str, place: str, otherwise: str | None = None
) -> str:
    value = data.get(key, otherwise)
    if not isinstance(value, str):
        raise SpecError(f"{place}: {key!r} must be text.")
    return value


def _messages(value: Any, place: str) -> list[dict[str, str]]:
    """Return the messages of a conversation, with no keys but role and content."""
    if not isinstance(value, list) or len(value) < 2:
        raise SpecError(f"{place}: 'messages' must be a list of two or more.")
    for number, message in enumerate(value, start=1):
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise SpecError(
                f"{place}: message {number} must have a role and text as content.",
                hint=f"Roles: {', '.join(ROLES)}.",
            )
    if value[-1]["role"] != "assistant":
        raise SpecError(f"{place}: the last message must be the assistant's.")
    return [{"role": one["role"], "content": one["content"]} for one in value]
