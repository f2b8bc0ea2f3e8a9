"""Reads SMolInstruct as it is published (its unpacked ``data.zip``).

::

    raw/<split>/<task>.jsonl                  values: {"input": ..., "output": ...}
    sample/instruction_tuning/<split>/<task>.json   which value meets which template
    template/<name>/<task>.json               questions with <INPUT>, <OUTPUT>
    core_tag/<task>.json                      tags around the values

Where only ``raw/`` is there, the questions are this package's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hansa.core.errors import SpecError
from hansa.worker.base import Example
from hansa.worker.tasks.chem.catalog import ALL_KINDS, phrase, stable

_SAMPLES = Path("sample") / "instruction_tuning"


def is_smolinstruct(source: Path) -> bool:
    """Say whether a folder is laid out as SMolInstruct's is."""
    return (source / "raw").is_dir()


def tasks_of(source: Path) -> list[str]:
    """Return the sorted names of all tasks that the folder holds."""
    return sorted({path.stem for path in (source / "raw").glob("*/*.jsonl")})


def read_task(source: Path, split: str, task: str) -> list[Example]:
    """Return the examples of one task and split; none where there is no such file.

    Raises:
        SpecError: A file is damaged; the message names it (and the line).
    """
    path = source / "raw" / split / f"{task}.jsonl"
    if not path.is_file():
        return []
    rows = list(_rows(path))
    if (source / _SAMPLES / split / f"{task}.json").is_file():
        return _sampled(source, split, task, rows)
    return [_plain(task, row) for row in rows]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                yield {"input": row["input"], "output": row["output"]}
            except (ValueError, KeyError, TypeError) as error:
                raise SpecError(
                    f"{path}:{number} is no record with input and output: {error!r}."
                ) from error


def _plain(task: str, row: dict[str, Any]) -> Example:
    """Phrase a bare value; a record that is a question already stays as it is."""
    given, answer, target = row["input"], row["output"], ""
    if isinstance(answer, dict):  # several targets: ask for one of them
        target = sorted(answer)[stable(f"{task} {given}") % len(answer)]
        answer = answer[target]
    if task not in ALL_KINDS or "<" in f"{given}{answer}":
        return Example(task, str(given), str(answer))
    return phrase(task, str(given), str(answer), target)


def _sampled(
    source: Path, split: str, task: str, rows: Sequence[dict[str, Any]]
) -> list[Example]:
    path = source / _SAMPLES / split / f"{task}.json"
    try:
        plan = _json(path)
        templates = _json(
            source / "template" / str(plan["template_name"]) / f"{task}.json"
        )
        tags = _json(source / "core_tag" / f"{task}.json")
        return [
            _from_template(task, rows[item["idx"]], item, templates, tags)
            for item in plan["samples"]
        ]
    except (KeyError, IndexError, TypeError) as error:
        raise SpecError(
            f"{path} does not fit its values or templates: {error!r}.",
            hint="Unpack SMolInstruct's data.zip again, whole.",
        ) from error


def _from_template(
    task: str, row: dict[str, Any], item: dict[str, Any], templates: Any, tags: Any
) -> Example:
    template = templates[item["template_id"]]
    answer = row["output"]
    if isinstance(answer, dict):
        answer = answer[item["target"]]
    return Example(
        task,
        template["input"].replace("<INPUT>", _between(tags["input"], row["input"])),
        template["output"].replace("<OUTPUT>", _between(tags["output"], answer)),
    )


def _between(tags: Sequence[str | None], value: object) -> str:
    left, right = tags
    return str(value) if left is None else f"{left} {value} {right}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{path} can't be read: {error}.",
            hint="Unpack SMolInstruct's data.zip again, whole.",
        ) from error
