"""How a directory is cut into pieces: each is one object in the bucket.

Server and facility cut alike, so a piece needs no other name than its number. Pieces
keep every request small enough to be repeated, and what came over is never sent again.
"""

from __future__ import annotations

from dataclasses import dataclass

from hansa.core.errors import TransferError
from hansa.core.files import FileRecords
from hansa.mover.base import MANIFEST

MOST = 10_000
"""Pieces of one directory; more would make the messages long."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file.

    Attributes:
        number: Its place among all pieces of the directory: 0, 1, ...
        name: The file.
        offset: Where it begins in the file, in bytes.
        length: Its bytes; never 0.
        key: Name of the object, below the folder of the transfer in the bucket.
    """

    number: int
    name: str
    offset: int
    length: int
    key: str


def cut(files: FileRecords, part_bytes: int) -> list[Piece]:
    """Return all pieces, in order: by file name, the manifest's last.

    The key is made of the file's sha256, so what did not change is the same object.

    Args:
        files: All files, the manifest among them.
        part_bytes: Size of a piece; the last one of a file may be shorter.

    Raises:
        TransferError: There would be too many.
    """
    found: list[Piece] = []
    for name in sorted(files, key=lambda name: (name == MANIFEST, name)):
        record = files[name]
        for offset in range(0, record.bytes, part_bytes):
            length = min(part_bytes, record.bytes - offset)
            key = f"{record.sha256}/{part_bytes}/{offset // part_bytes:05d}"
            found.append(Piece(len(found), name, offset, length, key))
            if len(found) > MOST:
                raise TransferError(
                    f"In parts of {part_bytes} bytes there are more than {MOST}.",
                    hint="Raise `part_bytes` of the mover in federation.yaml.",
                    transient=False,
                )
    return found
