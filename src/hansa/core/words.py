"""Small help with names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word most like `word`, or None if none is like it."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None
