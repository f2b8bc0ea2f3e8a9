"""Durations and sizes as people write them: ``"1:00:00"``, ``90m``, ``26GB``.

`Seconds` and `Bytes` are the types that specs use; both take a plain number too.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PARTS = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d{1,2})(?::(\d{1,2}))?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGTP]?i?)B?", re.IGNORECASE)
_POWERS: dict[str, int] = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_duration(text: str | float) -> float:
    """Return seconds from ``90``, ``"90m"``, ``"1h30m"``, ``"1:30:00"``, ``"2-0:0:0"``.

    With two colons it is hours, minutes, seconds; with one it is minutes and
    seconds, as Slurm reads it. A leading ``D-`` counts days (then hours first).

    Raises:
        ValueError: The text is no duration.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    cleaned = str(text).strip()
    if re.fullmatch(r"\d+(\.\d+)?", cleaned):
        return float(cleaned)
    clock = _CLOCK.fullmatch(cleaned)
    if clock:
        return _clock_seconds(*clock.groups())
    parts = _PARTS.findall(cleaned)
    if parts and not _PARTS.sub("", cleaned).strip():
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    raise ValueError(
        f"{text!r} is no duration; write 90, '90m', '1h30m' or '1:30:00' "
        "(hours:minutes:seconds)"
    )


def _clock_seconds(
    days: str | None, first: str, second: str, third: str | None
) -> float:
    a, b, c = int(first), int(second), int(third or 0)
    if days is None and third is None:
        return a * 60.0 + b
    return int(days or 0) * 86400.0 + a * 3600.0 + b * 60.0 + c


def format_duration(seconds: float) -> str:
    """Return ``H:MM:SS`` (days in front when needed), as schedulers write it."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{text}" if days else text


def short_duration(seconds: float) -> str:
    """Return a duration for a table: ``0.4s``, ``42s``, ``12m05``, ``3h10``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def parse_size(text: str | int) -> int:
    """Return bytes from ``4096``, ``"26GB"`` (10^9) or ``"64MiB"`` (2^20).

    Raises:
        ValueError: The text is no size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"{text!r} is no size; write 4096, '26GB' or '64MiB'")
    number, unit = match.groups()
    base = 1024.0 if unit.lower().endswith("i") else 1000.0
    return round(float(number) * base ** _POWERS[unit.lower().removesuffix("i")])


def format_size(size: float) -> str:
    """Return a size for people, in powers of ten: ``0 B``, ``2.8 MB``, ``26 GB``."""
    number = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(number) < 1000 or unit == "TB":
            break
        number /= 1000
    return (
        f"{number:.0f} {unit}"
        if unit == "B" or number >= 100
        else f"{number:.1f} {unit}"
    )


Seconds = Annotated[
    float, BeforeValidator(parse_duration), Field(ge=0, description="a duration")
]
Bytes = Annotated[int, BeforeValidator(parse_size), Field(ge=0, description="a size")]
