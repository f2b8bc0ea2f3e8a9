"""Changes from the command line: ``a.b=v`` sets, ``+a.b=v`` adds, ``~a.b`` removes.

They act on the raw data before defaults are merged, so the result is checked like
a file. Values are YAML: ``stop.rounds=3``, ``strategy={name: fedbuff}``, ``a.b=``
(null).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from hansa.core.errors import SpecError
from hansa.core.words import nearest
from hansa.spec.problems import Document, KeyPath, Place
from hansa.spec.yaml import parse_value


@dataclass(frozen=True, slots=True)
class Override:
    """One change.

    Attributes:
        text: As the user wrote it.
        action: ``set``, ``add`` or ``remove``.
        keys: Keys (and list positions) from the root.
        value: The new value.
    """

    text: str
    action: str
    keys: tuple[str, ...]
    value: Any = None

    @property
    def where(self) -> str:
        """What messages call the place of the value."""
        return f"override '{self.text}'"


def parse(text: str) -> Override:
    """Read one override.

    Raises:
        SpecError: It has no ``=``, an empty key, or its value is no YAML.
    """
    action = {"+": "add", "~": "remove"}.get(text[:1], "set")
    keys, equals, value = text.removeprefix("+").removeprefix("~").partition("=")
    names = [key.strip() for key in keys.split(".")]
    if not all(names) or bool(equals) == (action == "remove"):
        raise SpecError(
            f"{text!r} is no override.",
            hint="Write key=value to set, +key=value to add, ~key to remove; "
            "for example stop.rounds=3.",
        )
    where = f"override '{text}'"
    return Override(
        text, action, tuple(names), parse_value(value, where) if equals else None
    )


def apply(doc: Document, overrides: Iterable[str]) -> Document:
    """Return the document with all overrides applied, in order.

    Raises:
        SpecError: An override can't be read, adds what exists, or removes or
            enters what does not.
    """
    for text in overrides:
        override = parse(text)
        data = copy.deepcopy(doc.data)
        path = _changed(data, override)
        doc = replace(doc, data=data, places=_moved(doc, path, override))
    return doc


def _moved(doc: Document, path: KeyPath, override: Override) -> dict[KeyPath, Place]:
    """Return the places, those at and under `path` replaced by the override."""
    places = {p: at for p, at in doc.places.items() if p[: len(path)] != path}
    for end in range(1, len(path) + 1):
        places.setdefault(path[:end], Place(override.where, 0, path[:end]))
    return places


def _changed(data: dict[str, Any], override: Override) -> KeyPath:
    """Change the data in place; return the path of the value that is another now."""
    parent: Any = data
    path: KeyPath = ()
    for name in override.keys[:-1]:
        key = _key(parent, name, path, override)
        parent = _enter(parent, key, path, override)
        path = (*path, key)
    if isinstance(parent, list):
        return _change_list(parent, path, override)
    return _change_mapping(parent, path, override)


def _key(parent: Any, name: str, path: KeyPath, override: Override) -> str | int:
    """Return what `name` is to its parent: a key, or a position in a list."""
    if isinstance(parent, dict):
        return name
    if name.isdecimal() and int(name) < len(parent):
        return int(name)
    raise SpecError(
        f"{override.where}: {_dotted(path)} is a list of {len(parent)} and has no item "
        f"{name!r}.",
        hint="Count from 0, or set the whole list.",
    )


def _enter(parent: Any, key: str | int, path: KeyPath, override: Override) -> Any:
    """Return the child at `key`, made empty if it is missing and may be made."""
    child = parent.get(key) if isinstance(parent, dict) else parent[key]
    if child is None:
        if override.action == "remove" or path == ("facilities",):
            raise _absent(parent, str(key), path, override)
        child = parent[key] = {}
    if isinstance(child, dict | list):
        return child
    raise SpecError(
        f"{override.where}: {_dotted((*path, key))} is a single value and has no keys.",
        hint="Set the whole of it.",
    )


def _change_list(items: list[Any], path: KeyPath, override: Override) -> KeyPath:
    key = _key(items, override.keys[-1], path, override)
    if override.action == "set":
        items[int(key)] = override.value
        return (*path, key)
    if override.action == "add":
        items.insert(int(key), override.value)
    else:
        del items[int(key)]
    return path


def _change_mapping(
    parent: dict[str, Any], path: KeyPath, override: Override
) -> KeyPath:
    key = override.keys[-1]
    if override.action == "remove":
        if key not in parent:
            raise _absent(parent, key, path, override)
        del parent[key]
    elif override.action == "add" and isinstance(parent.get(key), list):
        parent[key].append(override.value)
    elif override.action == "add" and key in parent:
        raise SpecError(
            f"{override.where}: {_dotted((*path, key))} has a value already.",
            hint="Leave the '+' out to replace it.",
        )
    elif override.action == "set" and path == ("facilities",) and key not in parent:
        raise _absent(parent, key, path, override)
    else:
        parent[key] = override.value
    return (*path, key)


def _absent(
    parent: dict[str, Any], key: str, path: KeyPath, override: Override
) -> SpecError:
    guess = nearest(key, parent)
    known = ", ".join(parent) or "nothing"
    return SpecError(
        f"{override.where}: there is no {key!r} in {_dotted(path) or 'the file'}.",
        hint=f"Did you mean {guess!r}?" if guess else f"There is: {known}.",
    )


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
