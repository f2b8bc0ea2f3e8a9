"""Files and directories that appear whole, or not at all.

Everything is written aside, under a name that starts with '.', flushed to disk and
renamed. A full disk is reported as `StorageFull`, with the half-written thing gone.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hansa.core.errors import StorageFull, StoreError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def full_disk(target: Path) -> Iterator[None]:
    """Turn "no space left", from anything inside, into `StorageFull`.

    Args:
        target: What is being written, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull(
            f"No space is left to write {target}: {error.strerror}.",
            hint=f"Free space on the file system of {target.parent} (old versions and "
            "updates are the large things), or raise the quota; then try again.",
        ) from error


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write a JSON file atomically and durably; the text depends on the data only.

    Raises:
        StorageFull: No space; an earlier file of that name is as it was.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
    try:
        with full_disk(path):
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            sync_directory(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory aside that becomes `final` when the block ends well.

    Files that are written inside must have been fsynced by their writer.

    Raises:
        StoreError: `final` exists.
        StorageFull: No space; nothing is left behind.
    """
    _refuse_existing(final)
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    try:
        with full_disk(final):
            aside.mkdir(parents=True)
            yield aside
            sync_directory(aside)
            _refuse_existing(final)
            aside.rename(final)
            sync_directory(final.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_directory(final: Path) -> None:
    """Remove a directory so that it is never seen half-removed."""
    gone = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    final.rename(gone)
    shutil.rmtree(gone)


def link_file(source: Path, target: Path) -> None:
    """Give an immutable file a second name; copy it where links don't work."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _FULL:
            raise
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, durably; a link is followed."""
    shutil.copyfile(source, target)
    sync_file(target)


def sync_file(path: Path) -> None:
    """Make a file's content survive a power cut."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse_existing(final: Path) -> None:
    if final.exists():
        raise StoreError(
            f"{final} exists already and is never changed.",
            hint="Use what is there, or remove it first.",
        )
