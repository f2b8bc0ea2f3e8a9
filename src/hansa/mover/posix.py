"""Server and facility share a file system: copy, or link where that is asked for."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from hansa.core.files import (
    FileRecord,
    FileRecords,
    remember,
    remembered,
    total_bytes,
)
from hansa.core.remarks import Remark
from hansa.mover import landing
from hansa.mover.base import Moved, Place

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)


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
        place: Where it works.
    """

    Options: ClassVar[type[BaseModel]] = PosixOptions

    def __init__(self, options: PosixOptions, place: Place) -> None:
        self._options = options
        self._root = options.path or place.mailbox
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hansa-mover")

    async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
        """Bring a directory to the facility; see `Mover.put`."""
        there = self._there(target)
        fill = _link_or_copy if self._options.link else _copy
        return await self._in_thread(lambda: _move(source, there, files, fill))

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        """Fetch a directory from the facility; see `Mover.get`."""
        there = self._there(source)
        return await self._in_thread(lambda: _move(there, target, files, _copy))

    async def check(self) -> list[Remark]:
        """Say nothing: the site agent looks at the mailbox itself."""
        return []

    async def close(self) -> None:
        """Let go of the thread; a copy under way is finished first."""
        await asyncio.to_thread(self._thread.shutdown)

    async def _in_thread(self, work: Callable[[], Moved]) -> Moved:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work)

    def _there(self, relative: str) -> Path:
        return self._root.joinpath(*landing.mailbox_parts(relative))


Fill = Callable[[Path, Path], None]
"""Makes the second path hold the bytes of the first."""


def _move(source: Path, target: Path, files: FileRecords, fill: Fill) -> Moved:
    began = time.monotonic()
    landing.check_names(files, source)
    with landing.readable_errors(source, target):
        manifest = landing.read_manifest(source)
        if landing.arrived(target, manifest, files):
            return Moved(bytes=0, seconds=time.monotonic() - began)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = landing.hidden(target, ".")
        aside.mkdir()
        try:
            _fill(source, aside, files, fill)
            landing.settle(aside, target, files, manifest)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    size = total_bytes(files) + len(manifest)
    return Moved(bytes=size, seconds=time.monotonic() - began)


def _fill(source: Path, aside: Path, files: FileRecords, fill: Fill) -> None:
    for name, record in files.items():
        landing.sized(source / name, record)
        fill(source / name, aside / name)
        with landing.syncing(aside / name):
            _verify(source / name, aside / name, record)


def _verify(origin: Path, copy: Path, record: FileRecord) -> None:
    """Compare a copy with its record.

    What shares its bytes with a file that this process has hashed is not hashed again:
    a version that was just made is linked to many facilities.
    """
    if os.path.samestat(origin.lstat(), copy.lstat()) and remembered(copy) == record:
        return
    landing.verify(copy, record, origin)
    remember(copy, record)


def _link_or_copy(origin: Path, copy: Path) -> None:
    try:
        copy.hardlink_to(origin)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _copy(origin, copy)


def _copy(origin: Path, copy: Path) -> None:
    # A link stays a link, on which `verify` stops: nothing outside is ever read.
    shutil.copyfile(origin, copy, follow_symlinks=False)
