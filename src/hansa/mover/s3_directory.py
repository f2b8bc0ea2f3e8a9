"""A directory as both ends of a transfer over a bucket see it.

It is cut into pieces: each is one object in the bucket. Server and facility cut alike,
so a piece needs no other name than its number. Pieces keep every request small enough
to be repeated, and what came over is never sent again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hansa.core.errors import TransferError
from hansa.core.files import FileRecord, FileRecords, remember, remembered
from hansa.mover import landing
from hansa.mover.base import MANIFEST, Damaged

MOST = 10_000
"""Pieces of one directory; more would make the messages long."""
URLS = 64
"""Most URLs of one request; it stays far below what any gateway carries."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file.

    Attributes:
        number: Its place among all pieces of the directory: 0, 1, ...
        name: The file.
        offset: Where it begins in the file, in bytes.
        length: Its bytes; never 0.
        key: Name of the object, below a folder of the run in the bucket.
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


def mailbox_place(path: str) -> tuple[str, str]:
    """Return the run and the directory in its mailbox, of ``<run>/versions/3``.

    Raises:
        TransferError: It is no path of a directory in a run's mailbox.
    """
    run, *rest = landing.mailbox_parts(path)
    if not rest:
        raise TransferError(
            f"{path!r} is no directory in a run's mailbox.", transient=False
        )
    return run, "/".join(rest)


def manifest_record(source: Path) -> FileRecord:
    """Return size and sha256 of a directory's manifest.

    Raises:
        Damaged: There is none.
        TransferError: It is no regular file, or larger than any manifest is.
    """
    with landing.readable_errors(source, "the other side"):
        try:
            return _record(landing.read_manifest(source))
        except FileNotFoundError:
            raise Damaged(
                f"{source} has no manifest.",
                hint="It is still being written, or was removed.",
            ) from None


def verify(source: Path, files: FileRecords) -> None:
    """Compare a directory's files with their records, before any of it leaves.

    What this process has hashed and nobody has written since is not read again: a
    version goes to many facilities.

    Args:
        source: The directory.
        files: What its manifest promises; the manifest may be among them.

    Raises:
        Damaged: One differs.
        TransferError: One is missing, or no regular file.
    """
    with landing.readable_errors(source, "the other side"):
        for name, record in files.items():
            path = source / name
            landing.regular(path)
            if remembered(path) != record:
                landing.verify(path, record, path)
                remember(path, record)


def arrived(target: Path, files: FileRecords) -> bool:
    """Tell whether a directory is there already and whole; as `landing.arrived`.

    Args:
        target: The directory.
        files: All its files, the manifest among them.

    Raises:
        TransferError: There is another manifest.
    """
    with landing.readable_errors("the directory", target):
        try:
            manifest = landing.read_manifest(target)
        except FileNotFoundError:
            return False
        if _record(manifest) != files[MANIFEST]:
            raise landing.another_manifest(target)
        return landing.arrived(target, manifest, data_files(files))


def settle(aside: Path, target: Path, files: FileRecords) -> None:
    """Give verified files their final place; as `landing.settle`.

    Args:
        aside: Holds all of them and nothing else.
        target: Their place.
        files: All files, the manifest among them.

    Raises:
        TransferError: Another mover was faster, with another manifest.
        OSError: The disk is full, or the like.
    """
    manifest = landing.read_manifest(aside)
    landing.settle(aside, target, data_files(files), manifest)


def data_files(files: FileRecords) -> FileRecords:
    """Return all files but the manifest."""
    return {name: record for name, record in files.items() if name != MANIFEST}


def _record(data: bytes) -> FileRecord:
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
