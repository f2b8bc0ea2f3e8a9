"""What a manifest promises of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of one file, named relative to its manifest."""

    bytes: int
    sha256: str


FileRecords = Mapping[str, FileRecord]


def total_bytes(files: FileRecords) -> int:
    """Return the size of all files together."""
    return sum(record.bytes for record in files.values())
