"""What lies in the bucket for facilities to fetch: uploaded once, shared by all.

Objects are named by content, so a file that two versions share, or two facilities
want, travels once. All movers of a process that use one bucket share one shelf. Its
two threads bound the memory that transfers take, however many facilities there are.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hansa.core.errors import PluginError, TransferError
from hansa.mover import landing
from hansa.mover.s3_directory import Piece
from hansa.mover.s3_options import S3Options

if TYPE_CHECKING:
    from hansa.mover.s3_bucket import Bucket

log = logging.getLogger(__name__)

_THREADS = 2
_NEWEST = 2
_T = TypeVar("_T")


@dataclass
class _Objects:
    """Objects of one run that facilities fetch, by key.

    Attributes:
        sizes: What is there, in bytes; None: nobody has looked yet.
        looking: Held by the one that looks.
        users: So many transfers need it now.
        newest: The highest number of a directory that it is part of.
    """

    sizes: dict[str, int] | None = None
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: Counter[str] = field(default_factory=Counter)
    newest: dict[str, int] = field(default_factory=dict)


class Shelf:
    """The objects of one bucket that this process has made, and who needs them.

    Args:
        bucket: The bucket.
        prefix: The folder in it below which everything lies.
    """

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self.bucket = bucket
        self.users = 0
        self._prefix = prefix
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hansa-s3")
        self._runs: dict[str, _Objects] = {}
        self._uploads: dict[str, asyncio.Task[None]] = {}
        self._waiting: Counter[str] = Counter()

    def folder(self, run: str) -> str:
        """Return the folder of a run in the bucket; it is removed with the run."""
        self._of(run)
        return f"{self._prefix}/{run}"

    def out(self, run: str, piece: Piece) -> str:
        """Return the object of a piece that facilities fetch."""
        return f"{self.folder(run)}/out/{piece.key}"

    def back(self, run: str, facility: str, piece: Piece) -> str:
        """Return the object of a piece that a facility delivers; only its own."""
        return f"{self.folder(run)}/in/{facility}/{piece.key}"

    async def carry(self, work: Callable[[], _T]) -> _T:
        """Carry bytes in one of the shelf's threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work)

    @contextmanager
    def using(self, run: str, place: str, pieces: Collection[Piece]) -> Iterator[None]:
        """Keep a directory's objects while the block runs.

        Args:
            run: Id of the run.
            place: The directory in the run's mailbox, as ``versions/3``.
            pieces: All of it.
        """
        keys = {self.out(run, piece) for piece in pieces}
        last = place.rpartition("/")[2]
        number = int(last) if last.isdecimal() else -1
        objects = self._of(run)
        for key in keys:
            objects.newest[key] = max(number, objects.newest.get(key, -1))
        objects.users.update(keys)
        try:
            yield
        finally:
            objects.users.subtract(keys)

    async def ensure(self, run: str, piece: Piece, path: Path) -> None:
        """Have a piece in the bucket; facilities that want the same wait together.

        Args:
            run: Id of the run.
            piece: Which part of the file.
            path: The file.

        Raises:
            TransferError: The file can't be read, or the bucket not be written.
        """
        key = self.out(run, piece)
        upload = self._uploads.get(key)
        if upload is None:
            upload = asyncio.create_task(self._upload(run, key, piece, path))
            upload.add_done_callback(lambda done: self._ended(key, done))
            self._uploads[key] = upload
        self._waiting[key] += 1
        try:
            await asyncio.shield(upload)
        finally:
            self._waiting[key] -= 1  # the upload is given up when nobody waits

    def forget(self, run: str, keys: Collection[str]) -> None:
        """Upload objects again when they are wanted: they are damaged or lost."""
        for key in keys:
            (self._of(run).sizes or {}).pop(key, None)

    async def sweep(self, run: str) -> None:
        """Remove what only directories with older numbers than the newest two hold.

        It is uploaded again where a facility wants it after all.
        """
        objects = self._of(run)
        numbers = sorted(set(objects.newest.values()))[-_NEWEST:]
        old = [
            key
            for key in objects.sizes or ()
            if not objects.users[key] and objects.newest.get(key) not in numbers
        ]
        self.forget(run, old)
        for key in old:
            objects.newest.pop(key, None)
        await asyncio.to_thread(self.bucket.delete, old)

    async def close(self, *, forget: bool) -> None:
        """Let go of the threads.

        Args:
            forget: Remove what lies below the folders of this process's runs; else
                it stays for the process that resumes them.
        """
        self._waiting.clear()
        await asyncio.to_thread(self._threads.shutdown)
        if forget:
            for run in sorted(self._runs):
                await asyncio.to_thread(self._clear, run)

    def _of(self, run: str) -> _Objects:
        return self._runs.setdefault(run, _Objects())

    def _clear(self, run: str) -> None:
        folder = self.folder(run)
        try:
            self.bucket.delete(list(self.bucket.sizes(folder)))
        except TransferError as error:
            log.warning("Objects stay below %s: %s", folder, error)

    async def _upload(self, run: str, key: str, piece: Piece, path: Path) -> None:
        objects = self._of(run)
        async with objects.looking:
            if objects.sizes is None:
                folder = f"{self.folder(run)}/out"
                objects.sizes = await asyncio.to_thread(self.bucket.sizes, folder)
        if objects.sizes.get(key) == piece.length:
            return
        with landing.readable_errors(path, "the bucket"):
            await self.carry(
                lambda: self.bucket.upload(
                    key,
                    path,
                    piece.offset,
                    piece.length,
                    lambda: self._waiting[key] > 0,
                )
            )
        objects.sizes[key] = piece.length

    def _ended(self, key: str, upload: asyncio.Task[None]) -> None:
        del self._uploads[key]
        if not upload.cancelled():
            upload.exception()  # told to those that wait; there may be nobody


_Where = tuple[str | None, ...]
_shelves: dict[_Where, Shelf] = {}


def borrow(options: S3Options) -> Shelf:
    """Return the process's one shelf for a bucket; give it back with `give_back`.

    Raises:
        PluginError: The extra ``s3`` is not installed.
    """
    where = (options.endpoint, options.region, options.bucket, options.prefix)
    if where not in _shelves:
        _shelves[where] = Shelf(_bucket(options), options.prefix)
    _shelves[where].users += 1
    return _shelves[where]


def _bucket(options: S3Options) -> Bucket:
    try:
        from hansa.mover.s3_bucket import Bucket  # noqa: PLC0415 - it is an extra
    except ImportError:
        raise PluginError(
            "The mover 's3' needs obstore, which is not installed.",
            hint="pip install 'hansa[s3]'",
        ) from None
    return Bucket(options)


async def give_back(shelf: Shelf, *, forget: bool) -> None:
    """Let go of a shelf; the last one to do so closes it, see `Shelf.close`."""
    shelf.users -= 1
    if shelf.users:
        return
    for where in [key for key, one in _shelves.items() if one is shelf]:
        del _shelves[where]
    await shelf.close(forget=forget)
