"""Server and facility share a file system: copy, or link where that is asked for."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from hansa.core.errors import StorageFull, TransferError
from hansa.core.files import FileRecords, total_bytes
from hansa.mover.base import MANIFEST, Moved

_READ_ONLY = 0o444
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class PosixOptions(BaseModel):
    """Options of the mover for a shared file system.

    Attributes:
        path: The facility's mailbox root as the server sees it; None where both see
            the same path.
        link: Share the bytes of versions by hard links where that is possible. Saves
            space, but then whoever can write the mailbox can write the server's copy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = None
    link: bool = False


class PosixMover:
    """Copies, in one thread; every file is verified by its sha256.

    What is moved becomes read-only. Versions are immutable, so putting one may link
    it where the option says so; an update belongs to the facility, which might still
    write into it, so it is always copied. A damaged directory at the target is set
    aside under a hidden name and brought anew.

    Args:
        options: Its options.
        mailbox: The facility's mailbox root, as its site agent names it.
    """

    Options: ClassVar[type[BaseModel]] = PosixOptions

    def __init__(self, options: PosixOptions, mailbox: Path) -> None:
        self._options = options
        self._root = options.path or mailbox
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hansa-mover")

    async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
        """Bring a directory to the facility; see `Mover.put`."""
        there = self._there(target)
        place = _link_or_copy if self._options.link else _copy
        return await self._in_thread(lambda: _move(source, there, files, place))

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        """Fetch a directory from the facility; see `Mover.get`."""
        there = self._there(source)
        return await self._in_thread(lambda: _move(there, target, files, _copy))

    async def close(self) -> None:
        """Let go of the thread; a copy under way is finished first."""
        await asyncio.to_thread(self._thread.shutdown)

    async def _in_thread(self, work: Callable[[], Moved]) -> Moved:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work)

    def _there(self, relative: str) -> Path:
        parts = PurePosixPath(relative).parts
        wrong = any(part.startswith((".", "/")) or "\0" in part for part in parts)
        if wrong or not parts:
            raise TransferError(
                f"{relative!r} is no path inside a mailbox.", transient=False
            )
        return self._root.joinpath(*parts)


Place = Callable[[Path, Path], None]
"""Makes the second path hold the bytes of the first."""


def _move(source: Path, target: Path, files: FileRecords, place: Place) -> Moved:
    began = time.monotonic()
    for name in files:
        _check_name(name, source)
    with _readable_errors(source, target):
        manifest = _read_manifest(source)
        if _is_there(target, manifest):
            if _is_whole(target, files):
                return Moved(bytes=0, seconds=time.monotonic() - began)
            # Damaged where it lies: out of the way, and brought anew.
            target.rename(_hidden(target, ".damaged-"))
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = _hidden(target, ".")
        aside.mkdir()
        try:
            _fill(source, aside, files, place, manifest)
            _reveal(aside, target, manifest)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    size = total_bytes(files) + len(manifest)
    return Moved(bytes=size, seconds=time.monotonic() - began)


def _hidden(target: Path, prefix: str) -> Path:
    """Return a name beside `target` that nobody else takes."""
    unique = f"{os.getpid()}-{os.urandom(4).hex()}"
    return target.with_name(f"{prefix}{target.name}.{unique}")


def _check_name(name: str, source: Path) -> None:
    odd = "/" in name or "\\" in name or "\0" in name or name.startswith(".")
    if odd or not name or name == MANIFEST:
        raise TransferError(
            f"The manifest of {source} lists a file {name!r}; that is no name for one.",
            transient=False,
        )


def _is_there(target: Path, manifest: bytes) -> bool:
    try:
        there = (target / MANIFEST).read_bytes()
    except FileNotFoundError:
        return False
    if there == manifest:
        return True
    raise TransferError(
        f"{target} is there already, with another manifest.",
        hint="Was this run id used before? Use another, or remove the old directory.",
        transient=False,
    )


def _is_whole(target: Path, files: FileRecords) -> bool:
    try:
        found = {name: _measure(target / name) for name in files}
    except FileNotFoundError:
        return False
    return found == {name: (one.bytes, one.sha256) for name, one in files.items()}


def _fill(
    source: Path, aside: Path, files: FileRecords, place: Place, manifest: bytes
) -> None:
    for name, record in files.items():
        origin, copy = source / name, aside / name
        if not stat.S_ISREG(origin.lstat().st_mode):
            raise TransferError(f"{origin} is no regular file.", transient=False)
        place(origin, copy)
        size, digest = _measure(copy)
        if (size, digest) != (record.bytes, record.sha256):
            raise TransferError(
                f"{origin} is not what its manifest promises: {size} bytes of "
                f"{record.bytes}, sha256 {digest[:12]} for {record.sha256[:12]}.",
                hint="It was damaged or is still being written.",
            )
        copy.chmod(_READ_ONLY)  # a version's bytes may be shared by many facilities
    (aside / MANIFEST).write_bytes(manifest)
    for entry in (*(aside / name for name in files), aside / MANIFEST, aside):
        _sync(entry)


def _reveal(aside: Path, target: Path, manifest: bytes) -> None:
    try:
        aside.rename(target)
    except OSError as error:
        # Another mover was faster: what it brought must be the same.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and _is_there(
            target, manifest
        ):
            return
        raise
    _sync(target.parent)


def _link_or_copy(origin: Path, copy: Path) -> None:
    try:
        copy.hardlink_to(origin)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(origin, copy)


def _copy(origin: Path, copy: Path) -> None:
    # A link stays a link, on which `_measure` stops: nothing outside is ever read.
    shutil.copyfile(origin, copy, follow_symlinks=False)


def _measure(path: Path) -> tuple[int, str]:
    """Return size and sha256 of a file."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _read_manifest(source: Path) -> bytes:
    path = source / MANIFEST
    if path.is_symlink():
        raise TransferError(f"{path} is no regular file.", transient=False)
    return path.read_bytes()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _readable_errors(source: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                f"No space is left for {target}.",
                hint="Free space or raise the quota there, then try again.",
            ) from error
        where = error.filename or source
        raise TransferError(
            f"{source} can't be brought to {target}: {error.strerror} ({where}).",
            transient=error.errno not in _LASTING,
        ) from error
