"""Finding the reply in what a command at a facility printed."""

from __future__ import annotations

import json
from typing import Any


def last_object(text: str) -> dict[str, Any] | None:
    """Return the last line that is a JSON object; login nodes print banners before."""
    for line in reversed(text.split("\n")):
        if not line.lstrip().startswith("{"):
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None
