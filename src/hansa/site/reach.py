"""Files of the mailbox, with nothing outside of it in reach."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from hansa.core.errors import FacilityError, IntegrityError, PolicyError
from hansa.mailbox.files import read_json

log = logging.getLogger(__name__)

JSON_LIMIT = 4 * 1024 * 1024
"""A status or manifest larger than this is not passed on."""


def inside(root: Path, path: Path) -> Path:
    """Return `path` if it lies in `root` when all symbolic links are followed.

    Args:
        root: A directory; may itself be reached through links.
        path: A path under it; need not exist.

    Raises:
        PolicyError: A link, or a ``..``, leads out.
    """
    if path.resolve().is_relative_to(root.resolve()):
        return path
    raise PolicyError(
        f"{path} leads out of the mailbox {root}.",
        hint="Remove the symbolic link; nothing outside the mailbox is served.",
    )


def tail(root: Path, relative: str, size: int) -> str:
    """Return the last `size` bytes of a file under `root`, as text.

    Args:
        root: Directory that must not be left.
        relative: Path below it.
        size: Most bytes to return; more are read by nobody.

    Raises:
        PolicyError: The path is absolute, has ``..`` or hidden parts, or leads out.
        FacilityError: It is no regular file.
    """
    parts = PurePosixPath(relative).parts
    if "\0" in relative or any(part.startswith((".", "/")) for part in parts):
        raise PolicyError(f"{relative!r} is no path inside a run's mailbox.")
    path = inside(root, root.joinpath(*parts))
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        what = error.strerror or "error"
        raise FacilityError(f"{relative!r} can't be read: {what}.") from error
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise FacilityError(f"{relative!r} is no file.")
        file.seek(max(0, info.st_size - size))
        return file.read(size).decode(errors="replace")


def small_json(root: Path, path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file under `root`, or None when there is none.

    Raises:
        PolicyError: A link leads out of `root`.
        IntegrityError: It is no JSON object, or larger than a message should be.
    """
    inside(root, path)
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
    if size > JSON_LIMIT:
        raise IntegrityError(f"{path} is too large to be passed on: {size} bytes.")
    return read_json(path)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other site agents out while the block runs.

    A server whose call timed out asks again while the first agent may still be at
    work; both must not submit.

    Args:
        path: Lock file; made when missing, and left there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(handle, path)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        # Some parallel file systems are mounted without locks. What is left then is
        # the look for a job of the same name, which is nearly always enough.
        log.warning("%s can't be locked: %s", path, error.strerror)
