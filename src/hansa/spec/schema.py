"""What the two files may hold, for editors (JSON Schema) and for people (Markdown)."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from hansa.core import plugins
from hansa.core.errors import PluginError
from hansa.core.shortform import ShortForm
from hansa.core.units import parse_duration, parse_size
from hansa.spec.federation import FederationSpec
from hansa.spec.fields import PluginSection, listed
from hansa.spec.plugged import OPTIONS, options_model
from hansa.spec.site import SiteSpec
from hansa.spec.walk import is_mapping, model_in, models_in, tag_of

DEFAULTS = "a partial facility that is merged beneath each facility"


_MERGED = (
    "FacilitySpec",
    "WorkSpec",
    "GatewayChoice",
    "MoverChoice",
    "LognormalQueue",
    "BackfillQueue",
    "ReplayQueue",
)
"""Parts of a facility; what they need may come from `defaults` or a preset."""


def federation_schema() -> dict[str, Any]:
    """Return the JSON Schema of federation.yaml (with `defaults`, before merging)."""
    schema = FederationSpec.model_json_schema()
    parts = schema["$defs"]
    for name in _MERGED:
        parts[name].pop("required", None)
    queue = parts["FacilitySimulation"]["properties"]["queue"]
    queue["anyOf"] = queue.pop("oneOf")
    del queue["discriminator"]
    schema["properties"]["defaults"] = {
        "$ref": "#/$defs/FacilitySpec",
        "description": DEFAULTS,
    }
    return _headed(schema, "federation.yaml")


def site_schema() -> dict[str, Any]:
    """Return the JSON Schema of site.yaml."""
    schema = SiteSpec.model_json_schema()
    for name in ("cache", "state", "poll"):
        schema["required"].remove(name)
    schema["$defs"]["PollSpec"].pop("required")
    return _headed(schema, "site.yaml")


def _headed(schema: dict[str, Any], title: str) -> dict[str, Any]:
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **schema, "title": title}


def federation_tables() -> str:
    """Return Markdown tables of every key of federation.yaml."""
    return "\n".join(_tables(FederationSpec, ""))


def site_tables() -> str:
    """Return Markdown tables of every key of site.yaml."""
    return "\n".join(_tables(SiteSpec, ""))


def _tables(model: type[BaseModel], prefix: str, tag: str = "") -> Iterator[str]:
    """Yield the table of a section, then those of the sections in it."""
    if prefix:
        yield f"### `{prefix}`" + (f", `type: {tag}`\n" if tag else "\n")
        yield f"{_summary(model)}\n"
    yield keys_table(model) if model.model_fields else "No keys.\n"
    if issubclass(model, PluginSection):
        yield "More keys: the options of the plug-in, see below.\n"
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        free = ".<name>" if is_mapping(field.annotation) else ""
        for one in inner:
            tag = tag_of(one) if len(inner) > 1 else ""
            yield from _tables(one, f"{prefix}.{name}{free}".lstrip("."), tag)


def keys_table(model: type[BaseModel]) -> str:
    """Return one Markdown table: key, type, default, meaning."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    documented = attribute_docs(model)
    for name, field in model.model_fields.items():
        words = type_words(field.annotation, field.metadata)
        meaning = documented.get(name) or field.description or ""
        cells = (f"`{name}`", words, _default(field), _sentence(meaning))
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    if model is FederationSpec:
        rows.append(f"| `defaults` | section |  | {DEFAULTS} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str) -> str:
    """Return a meaning as all are written: first letter large, no full stop."""
    text = " ".join(text.split()).removesuffix(".").replace("``", "`")
    return re.sub(r"\bNone\b", "null", text[:1].upper() + text[1:])


def attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return what the ``Attributes:`` of a model's docstring say, by name.

    What a model has from another one, that one's docstring says.
    """
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if issubclass(one, BaseModel) and one is not BaseModel:
            found |= _own_docs(one)
    return found


def _own_docs(model: type[BaseModel]) -> dict[str, str]:
    doc = inspect.cleandoc(model.__doc__ or "")
    _, _, block = doc.partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        start = re.match(r" {4}(\w+)(?: \(.*\))?: (.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2]
        elif line.startswith(" " * 8) and found:
            found[name] += " " + line.strip()
    return found


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n", maxsplit=1)[0].split()).replace(
        "``", "`"
    )


_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    Any: "anything",
}
_READERS = {parse_duration: "duration", parse_size: "size", listed: "text or list"}


def type_words(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """Return what people call a type: ``duration``, ``whole number >= 1``."""
    for mark in metadata:
        if isinstance(mark, BeforeValidator) and mark.func in _READERS:
            return _READERS[mark.func]
        if isinstance(mark, ShortForm):
            return "text or section"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(args[0], annotation.__metadata__)
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (Union, UnionType):
        words = [type_words(a, metadata) for a in args if a is not NoneType]
        return " or ".join(dict.fromkeys(words))
    if origin in (list, tuple):
        plural = "s" if model_in(args[0]) else ""
        return f"list of {type_words(args[0])}{plural}"
    if is_mapping(annotation):
        return "keys with values" if model_in(annotation) is None else "sections"
    if model_in(annotation) is not None:
        return "section"
    return " ".join([_WORDS.get(annotation, str(annotation)), *_bounds(metadata)])


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    for mark in metadata:
        if isinstance(mark, FieldInfo):
            yield from _bounds(mark.metadata)
        for sign, kind, name in (
            (">=", annotated_types.Ge, "ge"),
            (">", annotated_types.Gt, "gt"),
            ("<=", annotated_types.Le, "le"),
            ("<", annotated_types.Lt, "lt"),
        ):
            if isinstance(mark, kind):
                yield f"{sign} {getattr(mark, name)}"


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "x-default" in extra:
        return str(extra["x-default"])
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return ""
    words = type_words(field.annotation, field.metadata)
    if words == "duration" and isinstance(value, float):
        return f"`{_duration(value)}`"
    return f"`{json.dumps(value, default=str)}`"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def plugin_tables() -> str:
    """Return Markdown of the options of all plug-ins that come with Hansa."""
    parts: list[str] = []
    for group, attributes in OPTIONS.items():
        parts += [
            text
            for name in plugins.names(group)
            for attribute in attributes
            if (text := _plugin_table(group, name, attribute))
        ]
    return "\n".join(parts)


def _plugin_table(group: str, name: str, attribute: str) -> str:
    """Return one plug-in's section; nothing if it is not ours or can't be loaded."""
    try:
        model = options_model(group, name, attribute)
    except PluginError:
        return ""
    if not model.__module__.startswith("hansa."):
        return ""
    where = {"model_options": ": `model.options`", "work_options": ": `work`"}
    title = f"### {plugins.singular(group)} `{name}`{where.get(attribute, '')}\n"
    parts = [title, f"{_summary(model)}\n", *_tables(model, "")]
    return "\n".join(parts).replace("\n### `", "\n#### `")
