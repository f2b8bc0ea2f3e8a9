"""Records are values: equal by their fields, with no room for others."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import field, replace

import pytest

from hansa.core.records import record


@record
class Point:
    x: int
    y: int = 2
    names: tuple[str, ...] = field(default_factory=tuple)


def test_records_are_values() -> None:
    point = Point(x=1)
    assert point == Point(x=1, y=2, names=())
    assert point != Point(x=1, y=3)
    assert len({point, Point(x=1), replace(point, x=5)}) == 2
    assert repr(point) == "Point(x=1, y=2, names=())"
    assert deepcopy(point) == point


def test_fields_go_by_name_and_there_are_no_others() -> None:
    with pytest.raises(TypeError, match="positional"):
        Point(1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="unexpected keyword"):
        Point(x=1, z=1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        Point(x=1).z = 3  # type: ignore[attr-defined]
