"""Records: what events and commands are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

Kind = TypeVar("Kind")


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(field,)
)
def record(kind: type[Kind]) -> type[Kind]:
    """Make a class a dataclass with slots and keywords only, never to be changed.

    The type checker refuses to set a field. Python itself does not: a frozen dataclass
    takes five times as long to build, and a simulation builds millions of records.
    """
    return dataclass(kw_only=True, slots=True, unsafe_hash=True)(kind)
