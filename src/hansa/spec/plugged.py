"""The parts of a file that belong to plug-ins, checked by the plug-ins' own models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hansa.core import plugins
from hansa.core.errors import PluginError
from hansa.spec.problems import Document, KeyPath, Problem, problems_of, unknown_key
from hansa.spec.walk import members

OPTIONS = {
    plugins.STRATEGIES: ("Options",),
    plugins.GATEWAYS: ("Options",),
    plugins.MOVERS: ("Options",),
    plugins.SCHEDULERS: ("Options",),
    plugins.TASKS: ("options",),
    plugins.TRAINERS: ("model_options", "work_options"),
}
"""Names of the attributes that hold a plug-in's options models, by group."""


@dataclass(frozen=True, slots=True)
class PluginPart:
    """One part of a file that a plug-in understands.

    Attributes:
        group: Group of the plug-in.
        chooser: KeyPath of the key that names the plug-in.
        name: The plug-in's name.
        at: KeyPath of the mapping that holds the options.
        own: Keys of that mapping that are not the plug-in's.
        attribute: The plug-in's attribute that holds the options model.
    """

    group: str
    chooser: KeyPath
    name: str
    at: KeyPath
    own: tuple[str, ...] = ()
    attribute: str = "Options"


def options_model(group: str, name: str, attribute: str) -> type[BaseModel]:
    """Return a plug-in's options model.

    Raises:
        PluginError: No such plug-in, or it does not say which options it has.
    """
    plugin = plugins.find(group, name)
    model = getattr(plugin, attribute, None)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return model
    raise PluginError(
        f"The {plugins.singular(group)} {name!r} does not say which options it has.",
        hint=f"Give it an attribute {attribute!r} that is a pydantic model.",
    )


def checked(
    doc: Document, part: PluginPart, raw: Mapping[str, Any], base: Path | None
) -> tuple[dict[str, Any], list[Problem]]:
    """Return a part's data with the plug-in's defaults, and what is wrong with it.

    Args:
        doc: The file, for places.
        part: What to check.
        raw: The mapping at `part.at`.
        base: Folder against which relative paths are taken; None leaves them.
    """
    try:
        model = options_model(part.group, part.name, part.attribute)
    except PluginError as error:
        text = f"{error.message} {error.hint or ''}".rstrip()
        return dict(raw), [doc.problem(part.chooser, text)]
    own = {key: value for key, value in raw.items() if key in part.own}
    options = {key: value for key, value in raw.items() if key not in part.own}
    problems = _ignored(doc, part, options, model)
    try:
        parsed = model.model_validate(_absolute(options, model, base))
    except ValidationError as error:
        return dict(raw), problems + problems_of(doc, error, model, part.at)
    return {**own, **parsed.model_dump(mode="json")}, problems


def _ignored(
    doc: Document, part: PluginPart, options: Mapping[str, Any], model: type[BaseModel]
) -> list[Problem]:
    """Find unknown keys that a plug-in without ``extra="forbid"`` would ignore."""
    if model.model_config.get("extra") in ("forbid", "allow"):
        return []
    known = list(model.model_fields)
    return [
        unknown_key(doc, (*part.at, key), known) for key in options if key not in known
    ]


def _absolute(
    options: Mapping[str, Any], model: type[BaseModel], base: Path | None
) -> dict[str, Any]:
    """Make the options that are paths of this machine absolute."""
    if base is None:
        return dict(options)
    return {
        key: str(absolute(value, base))
        if isinstance(value, str) and _is_path(model, key)
        else value
        for key, value in options.items()
    }


def absolute(path: str, base: Path) -> Path:
    """Return `path` absolute, taken from `base`; ``~`` is expanded, links are kept."""
    return Path(os.path.normpath(base / Path(path).expanduser()))


def path_options(group: str, name: str, attribute: str = "Options") -> list[str]:
    """Return the names of a plug-in's options that are paths; none if it is unknown."""
    try:
        model = options_model(group, name, attribute)
    except PluginError:  # `checked` reports it
        return []
    return [key for key in model.model_fields if _is_path(model, key)]


def _is_path(model: type[BaseModel], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is not None and Path in members(field.annotation)
