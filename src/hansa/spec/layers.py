"""Laying one section of a file over another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lay_over(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Return `high` completed by `low`, mapping by mapping.

    Lists and scalars of `high` replace those of `low`, and so does a mapping whose
    `type` is another one: options of one gateway mean nothing to another.
    """
    merged = {**low, **high}
    for key, value in high.items():
        under = low.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            other = value.get("type", under.get("type")) != under.get("type")
            merged[key] = dict(value) if other else lay_over(under, value)
    return merged
