"""What lies in the bucket for facilities to fetch: uploaded once, shared by all.

Objects are named by content, so a file that two versions share, or two facilities
want, travels once. All movers of a process that use one bucket share one shelf. Its
two threads bound the memory that uploads take, however many facilities there are.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hansa.core.errors import PluginError, TransferError
from hansa.mover.s3_options import S3Options
from hansa.mover.s3_pieces import Piece

if TYPE_CHECKING:
    from hansa.mover.s3_bucket import Bucket

log = logging.getLogger(__name__)

_THREADS = 2
_NEWEST = 2
_T = TypeVar("_T")


class Shelf:
    """The objects of one bucket that this process has made, and who uses them.

    Args:
        bucket: The bucket.
        prefix: The folder in it below which everything lies.
    """

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self.bucket = bucket
        self._prefix = prefix
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hansa-s3")
        self._lock = threading.Lock()
        self._being_made: dict[str, threading.Lock] = {}
        self._there: dict[str, dict[str, int]] = {}
        self._holds: dict[tuple[str, str], set[str]] = {}
        self._in_use: dict[tuple[str, str], int] = {}
        self.users = 0

    def folder(self, run: str) -> str:
        """Return the folder of a run in the bucket."""
        return f"{self._prefix}/{run}"

    def out(self, run: str, piece: Piece) -> str:
        """Return the object of a piece that facilities fetch."""
        return f"{self.folder(run)}/out/{piece.key}"

    def back(self, run: str, facility: str, piece: Piece) -> str:
        """Return the object of a piece that a facility delivers; only its own."""
        return f"{self.folder(run)}/in/{facility}/{piece.key}"

    async def do(self, work: Callable[[], _T]) -> _T:
        """Do blocking work with the bucket in one of the shelf's threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work)

    @contextmanager
    def using(self, run: str, place: str, pieces: Iterable[Piece]) -> Iterator[None]:
        """Keep a directory's objects while the block runs.

        Args:
            run: Id of the run.
            place: The directory in the run's mailbox, as ``versions/3``.
            pieces: All of it.
        """
        here = (run, place)
        with self._lock:
            self._holds.setdefault(here, set()).update(
                self.out(run, piece) for piece in pieces
            )
            self._in_use[here] = self._in_use.get(here, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[here] -= 1

    def ensure(
        self, run: str, piece: Piece, path: Path, go_on: Callable[[], bool]
    ) -> None:
        """Have a piece in the bucket; blocks.

        Args:
            run: Id of the run.
            piece: Which part of the file.
            path: The file.
            go_on: As for `Bucket.upload`.
        """
        key = self.out(run, piece)
        with self._lock:
            turn = self._being_made.setdefault(key, threading.Lock())
        with turn:  # another facility may be uploading it
            if self._known(run).get(key) == piece.length:
                return
            self.bucket.upload(key, path, piece.offset, piece.length, go_on)
            with self._lock:
                self._there[run][key] = piece.length

    def drop(self, run: str, keys: Collection[str]) -> None:
        """Remove objects that turned out damaged, or are not needed; blocks."""
        with self._lock:
            known = self._there.get(run, {})
            for key in keys:
                known.pop(key, None)
                self._being_made.pop(key, None)
        self.bucket.delete(sorted(keys))

    def sweep(self, run: str) -> None:
        """Remove what only directories with older numbers than the newest two hold.

        It is uploaded again where a facility wants it after all; blocks.
        """
        with self._lock:
            kept = self._newest(run)
            held = {key for here in kept for key in self._holds[here]}
            for here in [one for one in self._holds if one[0] == run]:
                if here not in kept:
                    del self._holds[here]
            old = [key for key in self._there.get(run, {}) if key not in held]
        if old:
            self.drop(run, old)

    def clear(self) -> None:
        """Remove all that was made below the folders of this process's runs; blocks."""
        for run in sorted(self._there):
            try:
                folder = self.folder(run)
                self.bucket.delete(list(self.bucket.sizes(folder)))
            except TransferError as error:
                log.warning("Objects stay below %s: %s", self.folder(run), error)
        self._there.clear()
        self._threads.shutdown(wait=False)

    def touch(self, run: str) -> None:
        """Note that a run has objects here, which are removed in the end; blocks."""
        self._known(run)

    def _newest(self, run: str) -> set[tuple[str, str]]:
        mine = [here for here in self._holds if here[0] == run]
        numbers = sorted({_number(place) for _, place in mine})[-_NEWEST:]
        return {
            here
            for here in mine
            if self._in_use.get(here) or _number(here[1]) in numbers
        }

    def _known(self, run: str) -> dict[str, int]:
        with self._lock:
            if run not in self._there:
                folder = f"{self.folder(run)}/out"
                self._there[run] = self.bucket.sizes(folder)
            return self._there[run]


def _number(place: str) -> int:
    last = place.rpartition("/")[2]
    return int(last) if last.isdecimal() else -1


_Where = tuple[str | None, ...]
_shelves: dict[_Where, Shelf] = {}
_opening = threading.Lock()


def borrow(options: S3Options) -> Shelf:
    """Return the process's one shelf for a bucket; give it back with `give_back`.

    Raises:
        PluginError: The extra ``s3`` is not installed.
    """
    with _opening:
        where = (options.endpoint, options.region, options.bucket, options.prefix)
        shelf = _shelves.get(where) or Shelf(_bucket(options), options.prefix)
        _shelves[where] = shelf
        shelf.users += 1
        return shelf


def _bucket(options: S3Options) -> Bucket:
    try:
        from hansa.mover.s3_bucket import Bucket  # noqa: PLC0415 - it is an extra
    except ImportError:
        raise PluginError(
            "The mover 's3' needs obstore, which is not installed.",
            hint="pip install 'hansa[s3]'",
        ) from None
    return Bucket(options)


def give_back(shelf: Shelf) -> None:
    """Let go of a shelf; the last one to do so removes its objects. Blocks."""
    with _opening:
        shelf.users -= 1
        if shelf.users:
            return
        for where in [key for key, one in _shelves.items() if one is shelf]:
            del _shelves[where]
    shelf.clear()
