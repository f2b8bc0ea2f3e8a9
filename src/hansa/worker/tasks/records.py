"""Instruction data as JSON lines: ``{"input": ..., "output": ...}``.

A source is one of:

- a file ``*.jsonl``; each line may name its ``task`` and its ``split`` ("train");
- a folder with ``train.jsonl`` and ``test.jsonl``;
- a folder with ``raw/train/<task>.jsonl`` and ``raw/test/<task>.jsonl``, as
  SMolInstruct is published (``raw/`` may be left out).

Other keys of a line are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from hansa.core.errors import SpecError
from hansa.worker.base import Example


def read_records(source: Path, split: str) -> list[Example]:
    """Return all examples of a split ("train", "test"), by file name and line.

    A line without ``task`` belongs to the task that its file is named after.

    Raises:
        SpecError: The source is missing or holds no such split, or a line is no
            record; the message names file and line.
    """
    if source.is_file():
        return [example for part, example in _lines(source, "train") if part == split]
    return [
        example
        for path in _files(source, split)
        for part, example in _lines(path, split)
        if part == split
    ]


def _files(source: Path, split: str) -> list[Path]:
    for folder in (source / "raw" / split, source / split):
        if found := sorted(folder.glob("*.jsonl")):
            return found
    single = source / f"{split}.jsonl"
    if single.is_file():
        return [single]
    raise SpecError(
        f"There are no {split!r} records in {source}.",
        hint=f"Give a .jsonl file, or a folder with {split}.jsonl or "
        f"raw/{split}/<task>.jsonl, in `tasks` of site.yaml.",
    )


def _lines(path: Path, split: str) -> Iterator[tuple[str, Example]]:
    """Yield split and example of every line; `split` is what a line without has."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    data = _record(line, f"{path}:{number}")
                    task = data.get("task", path.stem)
                    example = Example(task, data["input"], data["output"])
                    yield data.get("split", split), example
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is no UTF-8 text: {error}.") from error


def _record(line: str, place: str) -> dict[str, str]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise SpecError(f"{place} is no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise SpecError(f"{place} is no record: it must be an object {{...}}.")
    for key in ("input", "output"):
        if key not in data:
            raise SpecError(
                f"{place} has no {key!r}.",
                hint='A record is {"input": "...", "output": "..."}.',
            )
    for key in ("input", "output", "task", "split"):
        if not isinstance(data.get(key, ""), str):
            raise SpecError(f"{place}: {key!r} must be text.")
    return data
