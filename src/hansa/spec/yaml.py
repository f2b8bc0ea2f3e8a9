"""YAML 1.2 with the line of every key.

``1e-4`` is a number, ``12:30:00`` and ``2026-01-31`` are text, ``no`` is text, a key
written twice is an error. Anchors work; tags and merge keys (``<<``) are refused.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import BaseConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hansa.core.errors import SpecError
from hansa.core.words import nearest
from hansa.spec.problems import Document, KeyPath, Place, shown

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("null", "bool", "int", "float", "str")}
_QUOTE = "Put it in quotes if it is meant as text."


def read(path: Path, title: str) -> Document:
    """Read a YAML file whose root is a mapping.

    Args:
        path: The file.
        title: What the whole file is called in messages.

    Raises:
        SpecError: No such file, not UTF-8, not YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"There is no file {path}.", hint=_similar(path)) from None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path} is no text file in UTF-8: {error.reason}.",
            hint="Save the file as UTF-8.",
        ) from None
    except OSError as error:
        raise SpecError(
            f"{path} can't be read: {error.strerror}.",
            hint="Give the path of a readable YAML file.",
        ) from None
    return parse(text, str(path), title)


def _similar(path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
    guess = nearest(path.name, names)
    return f"Did you mean {folder / guess}?" if guess else "Check the path."


def parse(text: str, name: str, title: str) -> Document:
    """Parse YAML text as `read` does; `name` is the file's name in messages."""
    node = _compose(text, name)
    if not isinstance(node, MappingNode):
        what = "is empty" if node is None else "must hold keys with values"
        raise SpecError(
            f"{name}:1: the file {what}.",
            hint=f"Start with `name: ...`; docs/files.md shows a whole {title}.",
        )
    reader = _Reader(name)
    data = reader.value(node, ())
    reader.places[()] = Place(f"{name}:1", 1, ())
    return Document(title, name, data, reader.places)


def parse_value(text: str, name: str) -> Any:
    """Return one value written as YAML (scalar or flow form); empty text is null.

    Raises:
        SpecError: The text is no YAML.
    """
    node = _compose(text, name)
    return None if node is None else _Reader(name).value(node, ())


def dump(data: dict[str, Any]) -> str:
    """Return plain data as YAML in block form, keys in their given order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    # ruamel.yaml 0.19 loses NEL (U+0085) unescaped, and adds blanks where it folds.
    yaml.allow_unicode = False
    yaml.width = sys.maxsize
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()


def _compose(text: str, name: str) -> Node | None:
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError(
            f"{name}:{line}: this is no YAML: {error.problem or error.context}.",
            hint="Look at the indentation, colons, quotes and brackets here and in "
            "the line above.",
        ) from None
    except YAMLError as error:
        raise SpecError(
            f"{name}: this is no YAML: {str(error).splitlines()[0]}.",
            hint="Remove control characters from the file.",
        ) from None
    return node


@dataclass(slots=True)
class _Reader:
    """Turns nodes into plain data and notes the line of each."""

    name: str
    places: dict[KeyPath, Place] = field(default_factory=dict)
    open_nodes: list[int] = field(default_factory=list)
    scalars: BaseConstructor = field(
        default_factory=lambda: YAML(typ="safe", pure=True).constructor
    )

    def value(self, node: Node, path: KeyPath) -> Any:
        if id(node) in self.open_nodes:
            raise self.error(node, "an anchor that contains itself")
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        self.open_nodes.append(id(node))
        if isinstance(node, MappingNode):
            result: Any = self.mapping(node, path)
        elif isinstance(node, SequenceNode):
            result = [
                self.item(child, (*path, i)) for i, child in enumerate(node.value)
            ]
        self.open_nodes.pop()
        return result

    def item(self, node: Node, path: KeyPath) -> Any:
        self.note(node, path)
        return self.value(node, path)

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node)
            if key in result:
                first = self.places[(*path, key)].line
                raise self.error(
                    key_node,
                    f"the key {key!r} is written twice (first in line {first})",
                    "Keep one of them.",
                )
            self.note(key_node, (*path, key))
            result[key] = self.value(value_node, (*path, key))
        return result

    def key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self.error(node, "a key must be text", _QUOTE)
        if node.tag == _TAG + "merge":
            raise self.error(
                node,
                "merge keys ('<<') are not part of YAML 1.2",
                "Write what facilities share under `defaults`.",
            )
        key = self.scalar(node)
        if not isinstance(key, str):
            raise self.error(node, f"the key {shown(key)} is no text", _QUOTE)
        return key

    def scalar(self, node: ScalarNode) -> Any:
        if node.tag == _TAG + "timestamp":
            return node.value
        if node.tag not in _SCALARS:
            raise self.error(node, f"the tag {node.tag!r} is not allowed", _QUOTE)
        try:
            return self.scalars.construct_object(node, deep=True)
        except ValueError:
            what = f"{node.value!r} is no {node.tag.removeprefix(_TAG)}"
            raise self.error(node, what, _QUOTE) from None

    def note(self, node: Node, path: KeyPath) -> None:
        line = node.start_mark.line + 1
        self.places[path] = Place(f"{self.name}:{line}", line, path)

    def error(self, node: Node, what: str, hint: str | None = None) -> SpecError:
        line = node.start_mark.line + 1
        return SpecError(f"{self.name}:{line}: {what}.", hint=hint)
