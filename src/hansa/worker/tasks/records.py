"""Instruction data as JSON lines: ``{"input": ..., "output": ...}``.

A source is one of:

- a file ``*.jsonl``; each line may name its ``task`` and its ``split`` ("train" or
  "test"; "train" if not);
- a folder with ``train.jsonl`` and ``test.jsonl``;
- a folder with ``raw/train/<task>.jsonl`` and ``raw/test/<task>.jsonl``, as
  SMolInstruct is published (``raw/`` may be left out).

Other keys of a line are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hansa.core.errors import SpecError
from hansa.worker.base import Example

SPLITS = ("train", "test")


def read_records(source: Path, split: str) -> list[Example]:
    """Return all examples of a split ("train", "test"), by file name and line.

    A line without ``task`` belongs to the task that its file is named after.

    Raises:
        SpecError: The source is missing or holds no such split, or a line is no
            record; the message names file and line.
    """
    if source.is_file():
        return [example for part, example in _lines(source) if part == split]
    return [example for path in _files(source, split) for _, example in _lines(path)]


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


def _lines(path: Path) -> Iterator[tuple[str, Example]]:
    """Yield every line's example and the split that it names, "train" if none."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{path}:{number}"
                    data = _record(line, place)
                    task = data.get("task", path.stem)
                    example = Example(
                        task, data["input"], data["output"], f"{path.name}:{number}"
                    )
                    yield split_of(data.get("split", "train"), place), example
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is no UTF-8 text: {error}.") from error
    except OSError as error:
        raise SpecError(f"{path} can't be read: {error.strerror}.") from error


def split_of(name: str, place: str) -> str:
    """Return the split that a line names.

    Raises:
        SpecError: There is no such split, so nobody would ever see the line.
    """
    if name not in SPLITS:
        raise SpecError(
            f"{place}: the split {name!r} is unknown.",
            hint=f"Known: {' and '.join(SPLITS)}.",
        )
    return name


def json_object(line: str | bytes, place: str) -> dict[str, Any]:
    """Return the JSON object of a line.

    Args:
        line: The line; bytes are UTF-8.
        place: File and number of the line, for errors.

    Raises:
        SpecError: It is none.
    """
    try:
        text = line.decode() if isinstance(line, bytes) else line
        data = json.loads(text)
        if (
            "\\ud" in text.lower()
        ):  # half of a pair is no character, and can't be encoded
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise SpecError(f"{place} is no UTF-8 text: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{place} is no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise SpecError(f"{place} is no record: it must be an object {{...}}.")
    return data


def _record(line: str, place: str) -> dict[str, str]:
    data = json_object(line, place)
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
