"""A file's data with the place of every key, and what is wrong with it, in words.

All mistakes of a file are shown at once, each as ``file:line: what; what to do``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from hansa.core.errors import SpecError
from hansa.core.words import nearest
from hansa.spec.walk import located

KeyPath = tuple[str | int, ...]
"""Keys (and list positions) from the root of a file to one value."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key was written: ``x.yaml:12`` (or an override), and its path there."""

    where: str
    line: int
    path: KeyPath


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Document:
    """Plain data of a file.

    Attributes:
        title: What the whole file is called in messages: "federation", "site".
        name: The file as the user wrote it.
        data: Dicts, lists and scalars.
        places: Place of every key and list item; of the root at ``()``.
    """

    title: str
    name: str
    data: dict[str, Any]
    places: Mapping[KeyPath, Place]

    def place(self, path: KeyPath) -> Place:
        """Return where `path`, or the nearest thing around it, was written."""
        ends = range(len(path), -1, -1)
        end = next(end for end in ends if path[:end] in self.places)
        found = self.places[path[:end]]
        return Place(found.where, found.line, found.path + path[end:])

    def problem(self, path: KeyPath, text: str) -> Problem:
        """Return a problem at `path`."""
        return Problem(self.place(path), text)

    def called(self, path: KeyPath) -> str:
        """Return what people call a path: ``stop.rounds``; the title at the root."""
        return ".".join(map(str, self.place(path).path)) or self.title


def fail(problems: Iterable[Problem]) -> NoReturn:
    """Raise one SpecError that lists all problems in the order of the file."""
    ordered = sorted(problems, key=lambda problem: problem.place.line)
    lines = list(dict.fromkeys(map(str, ordered)))
    raise SpecError(
        "\n".join(lines),
        hint=f"Correct {'this line' if len(lines) == 1 else 'these lines'}; "
        "docs/files.md explains every key.",
    )


def unknown_key(doc: Document, path: KeyPath, known: Iterable[str]) -> Problem:
    """Return the problem of a key that is not among the `known` ones."""
    known = list(known)
    guess = nearest(str(path[-1]), known)
    advice = (
        f"did you mean {guess!r}?"
        if guess
        else f"known keys: {', '.join(known) or 'none'}"
    )
    section = doc.called(path)[: -len(f".{path[-1]}")] or doc.title
    return doc.problem(path, f"unknown key {str(path[-1])!r} in {section}; {advice}")


def problems_of(
    doc: Document,
    errors: ValidationError | Iterable[Mapping[str, Any]],
    model: type[BaseModel],
    at: KeyPath = (),
) -> list[Problem]:
    """Put validation errors into words.

    Args:
        doc: The file.
        errors: What pydantic says; or some of its `errors()`.
        model: The model that was validated.
        at: KeyPath of the section that was validated.
    """
    items = errors.errors() if isinstance(errors, ValidationError) else errors
    return [_problem(doc, item, model, at) for item in items]


def _problem(
    doc: Document, item: Mapping[str, Any], model: type[BaseModel], at: KeyPath
) -> Problem:
    inner, _ = located(model, item["loc"])
    path = tuple(part for part in (*at, *inner) if part != "[key]")
    kind = item["type"]
    if kind == "extra_forbidden":
        _, owner = located(model, item["loc"][:-1])
        return unknown_key(doc, path, owner.model_fields if owner else ())
    if kind.startswith("union_tag"):
        return _wrong_type(doc, path, item["ctx"])
    if kind == "missing":
        section = doc.called(path[:-1])
        return doc.problem(path[:-1], f"{section} needs the key {str(path[-1])!r}")
    if kind in ("value_error", "assertion_error"):
        return doc.problem(path, f"{doc.called(path)}: {item['ctx']['error']}")
    return doc.problem(
        path, f"{doc.called(path)} is {shown(item['input'])}; expected {_wanted(item)}"
    )


def _wrong_type(doc: Document, path: KeyPath, ctx: Mapping[str, Any]) -> Problem:
    """Say that a section's `type` is missing, or is none that there is."""
    if "tag" not in ctx:
        return doc.problem(path, f"{doc.called(path)} needs the key 'type'")
    known = [tag.strip("'") for tag in str(ctx["expected_tags"]).split(", ")]
    guess = nearest(str(ctx["tag"]), known)
    advice = f"did you mean {guess!r}?" if guess else f"there are {', '.join(known)}"
    path = (*path, "type")
    return doc.problem(path, f"{doc.called(path)} is {shown(ctx['tag'])}; {advice}")


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text (in quotes if it looks like a number)",
    "bool": "true or false",
    "dict": "keys with values",
    "mapping": "keys with values",
    "model": "keys with values",
    "list": "a list",
    "tuple": "a text or a list of texts",
    "is": "a path",
}


def _wanted(item: Mapping[str, Any]) -> str:
    kind, message = str(item["type"]), str(item["msg"])
    if kind in ("literal_error", "enum"):
        return f"one of {item['ctx']['expected']}"
    if kind.endswith("too_short"):
        thing = "character" if kind.startswith("string") else "entry"
        return f"at least one {thing}"
    family = kind.partition("_")[0]
    if kind.endswith(("_type", "_parsing", "_from_float", "_instance_of")):
        return _WANTED.get(family, message)
    wanted = message.removeprefix("Input should be ")
    return f"a number {wanted}" if wanted.startswith(("greater", "less")) else wanted


def shown(value: object) -> str:
    """Return a value as the file would write it, cut to a readable length."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
