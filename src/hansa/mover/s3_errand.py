"""One transfer over a bucket, talked over with the facility's site agent."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from hansa.core.errors import HansaError, TransferError, from_json
from hansa.core.files import FileRecord, FileRecords, total_bytes
from hansa.mover import landing
from hansa.mover.base import Place, Progress
from hansa.mover.s3_options import S3Options
from hansa.mover.s3_pieces import Piece, cut
from hansa.mover.s3_shelf import Shelf

_QUICKEST_S, _SLOWEST_S = 0.1, 5.0
_TRIES = 3
"""So often damaged objects are made anew before the lane hears of it."""
_FINAL = ("done", "failed")


class Spoilt(Exception):
    """Objects are missing or damaged, and have to be made anew.

    Args:
        names: The files that they are part of.
        error: What to say if that does not help.
    """

    def __init__(self, names: Collection[str], error: HansaError) -> None:
        super().__init__(error.message)
        self.names = frozenset(names)
        self.error = error


class Part(Protocol):
    """What the server does while the facility does its part."""

    news: asyncio.Event

    def hear(self, reply: Mapping[str, Any]) -> None:
        """Take notice of how far the facility is."""
        ...

    def may_have(self, wanted: Sequence[int]) -> list[int]:
        """Return those pieces for which the facility may get a URL now."""
        ...


@dataclass(frozen=True)
class Errand:
    """What is to be moved where, and the messages about it.

    Attributes:
        op: The facility's part.
        run: Id of the run.
        place: The directory in the run's mailbox, as ``versions/3``.
        files: Its files; the manifest among them, once it is known.
        shelf: The bucket.
        options: The mover's options.
        there: The facility.
    """

    op: Literal["fetch", "deliver"]
    run: str
    place: str
    files: FileRecords
    shelf: Shelf
    options: S3Options
    there: Place
    began: float = field(default_factory=time.monotonic)

    @cached_property
    def pieces(self) -> list[Piece]:
        """Return how it is cut."""
        return cut(self.files, self.options.part_bytes)

    @property
    def shown(self) -> str:
        """Return the place for messages."""
        return f"{self.there.facility}:{self.run}/{self.place}"

    def key(self, piece: Piece) -> str:
        """Return the object of a piece; what facilities deliver is apart from all."""
        if self.op == "fetch":
            return self.shelf.out(self.run, piece)
        return self.shelf.back(self.run, self.there.facility, piece)

    async def drop(self, names: Collection[str]) -> None:
        """Remove the objects of some of the files."""
        keys = [self.key(piece) for piece in self.pieces if piece.name in names]
        await self.shelf.do(lambda: self.shelf.drop(self.run, keys))

    async def until_whole(self, start: Callable[[], Awaitable[int]]) -> int:
        """Carry the errand out; damaged or lost objects are made anew, a few times.

        Args:
            start: Begins one try; returns the bytes that it moved.

        Raises:
            HansaError: It failed.
        """
        for tries in range(1, _TRIES + 1):
            try:
                return await start()
            except Spoilt as spoilt:
                await self.drop(spoilt.names)
                if tries == _TRIES:
                    raise spoilt.error from None
        raise AssertionError("not reached")

    async def ask(
        self,
        ticket: str,
        *,
        urls: Mapping[int, str] | None = None,
        kept: Sequence[int] = (),
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Ask the facility to do its part, or how far it is with it.

        Args:
            ticket: The try.
            urls: Path and query of signed URLs, by number of the piece.
            kept: Pieces that need not be delivered.
            dry_run: Only say whether it may be done.
        """
        bucket = self.shelf.bucket
        origin = await self.shelf.do(lambda: bucket.origin)
        request = {
            "schema": 1,
            "op": self.op,
            "run": self.run,
            "place": self.place,
            "ticket": ticket,
            "origin": origin,
            "part_bytes": self.options.part_bytes,
            "files": {
                name: {"bytes": one.bytes, "sha256": one.sha256}
                for name, one in self.files.items()
            },
            "urls": {str(number): url for number, url in (urls or {}).items()},
            "valid": self.options.expires,
            "kept": list(kept),
            "dry_run": dry_run,
        }
        return await self.there.ask(request)

    async def manifest(self) -> FileRecord:
        """Return what the facility says of the manifest of a directory there.

        Raises:
            TransferError: There is none, or the answer makes no sense.
        """
        shown = (await self.ask("", dry_run=True)).get("manifest")
        if not isinstance(shown, Mapping):
            raise TransferError(f"{self.shown} was shown without a manifest.")
        size, digest = shown.get("bytes"), str(shown.get("sha256"))
        possible = isinstance(size, int) and 0 < size <= landing.MANIFEST_LIMIT
        if not possible or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise TransferError(f"The manifest of {self.shown} can't be like that.")
        return FileRecord(bytes=int(size or 0), sha256=digest)

    async def converse(
        self, part: Part, beside: asyncio.Task[None], kept: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Ask until the facility has done its part, with fresh URLs as it wants them.

        Args:
            part: What the server does meanwhile.
            beside: The task that does it; if it fails, that is raised.
            kept: As for `ask`.

        Returns:
            The last reply.

        Raises:
            Spoilt: The facility found objects missing or damaged.
            HansaError: It failed otherwise.
        """
        ticket, since = os.urandom(8).hex(), time.monotonic()
        urls: dict[int, str] = {}
        while True:
            part.news.clear()
            reply = await self.ask(ticket, urls=urls, kept=kept)
            if reply.get("state") in _FINAL:
                return self._outcome(reply)
            part.hear(reply)
            wanted = [int(number) for number in reply.get("wants", ())]
            urls = await self._signed(part.may_have(wanted))
            if not urls:
                spent = time.monotonic() - since
                await _rest(part.news, beside, max(_QUICKEST_S, spent / 10))
                urls = await self._signed(part.may_have(wanted))

    def show(self, done: int, faults: int = 0) -> None:
        """Tell people how far it is, in bytes."""
        spent = max(time.monotonic() - self.began, 1e-3)
        total = total_bytes(self.files)
        rate = done / spent
        self.there.watch(Progress(bytes=done, total=total, rate=rate, faults=faults))

    def _outcome(self, reply: dict[str, Any]) -> dict[str, Any]:
        if reply["state"] == "done":
            return reply
        error = from_json(reply.get("error") or {})
        damaged = [name for name in reply.get("damaged", ()) if name in self.files]
        if damaged:
            raise Spoilt(damaged, error)
        raise error

    async def _signed(self, numbers: Sequence[int]) -> dict[int, str]:
        if not numbers:
            return {}
        keys = [self.key(self.pieces[number]) for number in numbers]
        verb: Literal["GET", "PUT"] = "GET" if self.op == "fetch" else "PUT"
        lasts, bucket = self.options.expires, self.shelf.bucket
        urls = await self.shelf.do(lambda: bucket.sign(verb, keys, lasts))
        return dict(zip(numbers, urls, strict=True))


async def _rest(
    news: asyncio.Event, beside: asyncio.Task[None], longest: float
) -> None:
    """Wait for news from our side, or for a while; raise what `beside` raises."""
    heard = asyncio.ensure_future(news.wait())
    try:
        wait = min(longest, _SLOWEST_S)
        await asyncio.sleep(_QUICKEST_S)
        await asyncio.wait(
            {heard, beside}, timeout=wait, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        heard.cancel()
    if beside.done():
        beside.result()


class Fetching:
    """The server's part while the facility fetches: to upload what it wants.

    Args:
        errand: What is to be moved.
        source: The directory here, verified.
    """

    def __init__(self, errand: Errand, source: Path) -> None:
        self.news = asyncio.Event()
        self._errand = errand
        self._source = source
        self._queue: asyncio.Queue[int] = asyncio.Queue()
        self._asked: set[int] = set()
        self._there: set[int] = set()
        self._over = False

    async def carry_out(self) -> int:
        """Have the directory at the facility; return the bytes that it fetched.

        Raises:
            Spoilt: Objects are missing or damaged.
            HansaError: The facility or the bucket failed.
        """
        uploads = asyncio.create_task(self._upload())
        try:
            reply = await self._errand.converse(self, uploads)
        finally:
            self._over = True
            uploads.cancel()
            await asyncio.wait({uploads})
        return int(reply.get("moved", 0))

    def hear(self, reply: Mapping[str, Any]) -> None:
        """See `Part.hear`."""
        self._errand.show(int(reply.get("bytes", 0)), int(reply.get("faults", 0)))

    def may_have(self, wanted: Sequence[int]) -> list[int]:
        """See `Part.may_have`: what is uploaded; the rest will be."""
        for number in wanted:
            if number not in self._asked:
                self._asked.add(number)
                self._queue.put_nowait(number)
        return [number for number in wanted if number in self._there]

    async def _upload(self) -> None:
        shelf, run = self._errand.shelf, self._errand.run
        while True:
            number = await self._queue.get()
            piece = self._errand.pieces[number]
            path = self._source / piece.name
            await shelf.do(lambda: shelf.ensure(run, piece, path, self._wanted))  # noqa: B023
            self._there.add(number)
            self.news.set()

    def _wanted(self) -> bool:
        return not self._over


def gone(name: str, shown: str) -> TransferError:
    """Return the error for an object that is not there any more, or not whole."""
    return TransferError(
        f"The object of {name} for {shown} is missing in the bucket, or not whole.",
        hint="Does something else write below the mover's `prefix`?",
    )
