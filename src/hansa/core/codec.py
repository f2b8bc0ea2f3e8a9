"""Events and commands as JSON, and back, strictly.

The JSON form is ``{"type": "JobQueued", "schema": 1, ...fields}``. A field that is
missing, unknown or can't be read as its type is an error, never a default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from hansa.core.commands import Command
from hansa.core.errors import JournalCorrupt, JournalTooNew
from hansa.core.events import Event

SCHEMA = 1
"""Number of the JSON form; a reader refuses a larger one."""

_STRICT = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


_EVENTS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}
_COMMANDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Command)}
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {
    kind: TypeAdapter(with_config(_STRICT)(kind))
    for kind in (*_EVENTS.values(), *_COMMANDS.values())
}
_FIELDS: dict[type[Any], Callable[..., dict[str, Any]]] = {
    kind: adapter.serializer.to_python for kind, adapter in _ADAPTERS.items()
}


def to_json(thing: Event | Command) -> dict[str, Any]:
    """Return an event or a command as plain JSON data."""
    kind = type(thing)
    fields = _FIELDS[kind](thing, mode="json")
    return {"type": kind.__name__, "schema": SCHEMA, **fields}


def event_from_json(data: Mapping[str, Any]) -> Event:
    """Rebuild an event.

    Raises:
        JournalTooNew: A newer Hansa wrote it.
        JournalCorrupt: Its type or fields are not those of any event.
    """
    return cast(Event, _from_json(_EVENTS, data))


def command_from_json(data: Mapping[str, Any]) -> Command:
    """Rebuild a command; raises as `event_from_json` does."""
    return cast(Command, _from_json(_COMMANDS, data))


def _from_json(kinds: Mapping[str, type[Any]], data: Mapping[str, Any]) -> object:
    fields = dict(data)
    name, schema = str(fields.pop("type", None)), fields.pop("schema", None)
    if not isinstance(schema, int):
        raise JournalCorrupt(f"A record of type {name} has no schema number.")
    if schema > SCHEMA:
        raise JournalTooNew(
            f"A record of type {name} has schema {schema}; this Hansa reads up to "
            f"{SCHEMA}.",
            hint="Use the Hansa that wrote it, or a newer one.",
        )
    kind = kinds.get(name)
    if kind is None:
        raise JournalCorrupt(f"There is no record type {name}.")
    try:
        return _ADAPTERS[kind].validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise JournalCorrupt(f"Record {name}, field {place}: {first['msg']}.") from None
