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


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a field's type holds, directly or in a container.

    They are several where a section's `type` decides what else it holds.
    """
    return [
        part
        for part in members(annotation)
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the (first) model that a field's type holds; None: it holds none."""
    return next(iter(models_in(annotation)), None)


def tag_of(model: type[BaseModel]) -> str:
    """Return the one value of a model's `type`."""
    return str(get_args(model.model_fields["type"].annotation)[0])


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


def located(
    model: type[BaseModel], loc: Sequence[str | int]
) -> tuple[tuple[str | int, ...], type[BaseModel] | None]:
    """Return the path that pydantic means by a location, and the model there.

    Where a section's `type` decides what else it holds, pydantic puts that type into
    the location; it is no key of the file.

    Args:
        model: The model that was validated.
        loc: A location under it, as pydantic's errors have it.

    Returns:
        The path, and the model at its end (None: no model lies there).
    """
    current: type[BaseModel] | None = model
    path: list[str | int] = []
    parts = list(loc)
    while parts and current is not None:
        path.append(parts.pop(0))
        field = current.model_fields.get(str(path[-1]))
        if field is None:
            current = None
            break
        if parts and (is_mapping(field.annotation) or is_list(field.annotation)):
            path.append(parts.pop(0))
        models = models_in(field.annotation)
        current = models[0] if models else None
        if len(models) > 1 and parts:
            tag = parts.pop(0)
            current = next((one for one in models if tag_of(one) == tag), None)
    return (*path, *parts), current
