"""What both ends of a transfer over a bucket do with a directory of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hansa.core.errors import TransferError
from hansa.core.files import FileRecord, FileRecords, remember, remembered
from hansa.mover import landing
from hansa.mover.base import MANIFEST, Damaged


def promised(source: Path) -> FileRecord:
    """Return size and sha256 of a directory's manifest.

    Raises:
        Damaged: There is none.
        TransferError: It is no regular file, or larger than any manifest is.
    """
    with landing.readable_errors(source, "the other side"):
        try:
            data = landing.read_manifest(source)
        except FileNotFoundError:
            raise Damaged(
                f"{source} has no manifest.",
                hint="It is still being written, or was removed.",
            ) from None
    return record_of(data)


def record_of(data: bytes) -> FileRecord:
    """Return size and sha256 of some bytes."""
    return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def verified(source: Path, files: FileRecords) -> None:
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
        if record_of(manifest) != files[MANIFEST]:
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


def parts(path: str) -> tuple[str, str]:
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
