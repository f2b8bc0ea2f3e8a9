"""Comparing a directory with its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hansa.core.errors import IntegrityError
from hansa.core.files import FileRecord
from hansa.store.manifest import NAME
from hansa.store.tensorfile import hash_file


def check_names(directory: Path, files: Mapping[str, FileRecord]) -> None:
    """Check that a directory has the files of its manifest, of the right sizes.

    Raises:
        IntegrityError: A file is missing, too many, no plain file or of another size.
    """
    found = {
        entry.name: entry
        for entry in directory.iterdir()
        if entry.name != NAME and not entry.name.startswith(".")
    }
    if missing := sorted(files.keys() - found.keys()):
        raise _different(directory / missing[0], "is missing")
    if extra := sorted(found.keys() - files.keys()):
        raise _different(directory / extra[0], "is not in its manifest")
    for name, record in files.items():
        path = found[name]
        if path.is_symlink() or not path.is_file():
            raise _different(path, "is no plain file")
        size = path.stat().st_size
        if size != record.bytes:
            raise _different(path, f"has {size} bytes; {record.bytes} were promised")


def check_record(path: Path, found: FileRecord, promised: FileRecord) -> None:
    """Compare what was read of a file with what its manifest says.

    Raises:
        IntegrityError: They differ.
    """
    if found != promised:
        raise _different(
            path,
            f"has sha256 {found.sha256[:12]}…; {promised.sha256[:12]}… was promised",
        )


def verify_files(directory: Path, files: Mapping[str, FileRecord]) -> None:
    """Compare a directory with what its manifest promises, byte by byte.

    Raises:
        IntegrityError: A file is missing, too many or has other bytes.
    """
    check_names(directory, files)
    for name, record in files.items():
        check_record(directory / name, hash_file(directory / name), record)


def _different(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path} {what}.", hint="Fetch it again from where it was written."
    )
