"""Walking over pydantic models: which model sits where, and what a type is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def members(annotation: Any) -> Iterator[Any]:
    """Yield what a type is made of, without Annotated, None and containers."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from members(part)
    elif origin is dict:
        yield from members(get_args(annotation)[1])
    elif origin in (list, tuple):
        for part in get_args(annotation):
            yield from members(part)
    elif annotation not in (NoneType, Ellipsis):
        yield annotation


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field's type holds, directly or in a container."""
    for part in members(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def is_mapping(annotation: Any) -> bool:
    """Tell whether a type is a dict (with free keys), possibly optional."""
    origin = get_origin(annotation)
    if origin in (Annotated, Union, UnionType):
        return any(is_mapping(part) for part in get_args(annotation))
    return origin is dict


def is_list(annotation: Any) -> bool:
    """Tell whether a type is a list or tuple, possibly optional."""
    origin = get_origin(annotation)
    if origin in (Annotated, Union, UnionType):
        return any(is_list(part) for part in get_args(annotation))
    return origin in (list, tuple)


def model_at(
    model: type[BaseModel], path: Sequence[str | int]
) -> type[BaseModel] | None:
    """Return the model at `path` under `model`, or None if there is none."""
    current: type[BaseModel] | None = model
    parts = list(path)
    while parts and current is not None:
        field = current.model_fields.get(str(parts.pop(0)))
        if field is None:
            return None
        if parts and (is_mapping(field.annotation) or is_list(field.annotation)):
            parts.pop(0)
        current = model_in(field.annotation)
    return current
