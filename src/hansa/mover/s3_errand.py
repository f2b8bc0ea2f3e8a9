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
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.core.errors import HansaError, TransferError, from_json
from hansa.core.files import FileRecord, FileRecords, total_bytes
from hansa.mover import landing
from hansa.mover.base import Place, Progress
from hansa.mover.s3_directory import URLS, Piece, cut
from hansa.mover.s3_options import S3Options
from hansa.mover.s3_shelf import Shelf

_QUICKEST_S, _SLOWEST_S = 0.1, 5.0
_TRIES = 3
"""So often damaged objects are made anew before the lane hears of it."""
_STALL_S = 1800.0
"""So long a facility may bring nothing over; what it has, it may be verifying."""

_Count = Annotated[int, Field(ge=0, lt=1 << 60)]


class Reply(BaseModel):
    """What a facility says of its part; nothing that it says is trusted unread.

    Attributes:
        state: ``left`` is no end: it goes on when it is asked again.
        bytes: Of all pieces that are there.
        moved: Bytes that came over the line in this try.
        ready: So many pieces from the first on are complete.
        wants: Pieces that need a fresh URL.
        faults: Troubles of the line so far, all mended.
        error: What went wrong, as `from_json` reads it.
        damaged: Files of which an object is missing or damaged.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    state: Literal["moving", "left", "done", "failed"]
    bytes: _Count = 0
    moved: _Count = 0
    ready: _Count = 0
    wants: list[int] = Field(default_factory=list)
    faults: _Count = 0
    error: dict[str, Any] | None = None
    damaged: list[str] = Field(default_factory=list)


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

    def hear(self, reply: Reply) -> None:
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
        """Have the objects of some of the files made anew when they are wanted."""
        keys = [self.key(piece) for piece in self.pieces if piece.name in names]
        if self.op == "fetch":  # others may be fetching them: they are written over
            self.shelf.forget(self.run, keys)
        else:
            await asyncio.to_thread(self.shelf.bucket.delete, keys)

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

    async def manifest(self) -> FileRecord:
        """Return what the facility says of the manifest of a directory there.

        Raises:
            TransferError: There is none, or the answer makes no sense.
        """
        shown = (await self._ask(dry_run=True)).get("manifest")
        if not isinstance(shown, Mapping):
            raise TransferError(f"{self.shown} was shown without a manifest.")
        size, digest = shown.get("bytes"), str(shown.get("sha256"))
        possible = isinstance(size, int) and 0 < size <= landing.MANIFEST_LIMIT
        if not possible or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise TransferError(f"The manifest of {self.shown} can't be like that.")
        return FileRecord(bytes=int(size or 0), sha256=digest)

    async def converse(
        self, part: Part, beside: asyncio.Task[None], kept: Sequence[int] = ()
    ) -> Reply:
        """Ask until the facility has done its part, with fresh URLs as it wants them.

        Args:
            part: What the server does meanwhile.
            beside: The task that does it; if it fails, that is raised.
            kept: Pieces that need not be delivered.

        Returns:
            The last reply.

        Raises:
            Spoilt: The facility found objects missing or damaged.
            HansaError: It failed otherwise.
        """
        ticket, since = os.urandom(8).hex(), time.monotonic()
        urls: dict[str, str] = {}
        watch = _Watch()
        while True:
            part.news.clear()
            reply = self._read(await self._ask(ticket=ticket, urls=urls, kept=kept))
            if reply.state == "done":
                return reply
            if reply.state == "failed":
                raise self._failure(reply)
            if watch.quiet_s(reply.bytes) > _STALL_S:
                raise self._stalled()
            part.hear(reply)
            known = range(len(self.pieces))
            wanted = [number for number in reply.wants if number in known][:URLS]
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

    async def _ask(
        self,
        *,
        ticket: str = "",
        urls: Mapping[str, str] | None = None,
        kept: Sequence[int] = (),
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Send the request `Exchange` of `hansa.site`; return what is answered."""
        bucket = self.shelf.bucket
        request = {
            "schema": 1,
            "op": self.op,
            "run": self.run,
            "place": self.place,
            "ticket": ticket,
            "origin": await asyncio.to_thread(lambda: bucket.origin),
            "part_bytes": self.options.part_bytes,
            "files": {
                name: {"bytes": one.bytes, "sha256": one.sha256}
                for name, one in self.files.items()
            },
            "urls": dict(urls or {}),
            "valid": self.options.expires,
            "kept": list(kept),
            "dry_run": dry_run,
        }
        return await self.there.ask(request)

    def _read(self, data: Mapping[str, Any]) -> Reply:
        try:
            return Reply.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise TransferError(
                f"{self.there.facility} answers {self.op!r} with what makes no sense: "
                f"{where}: {first['msg']}.",
                hint="Install the same version of hansa here and there.",
                transient=False,
            ) from None

    def _failure(self, reply: Reply) -> Exception:
        silent = {
            "message": f"{self.shown} failed, and {self.there.facility} says no more."
        }
        error = from_json(reply.error or silent)
        damaged = [name for name in reply.damaged if name in self.files]
        return Spoilt(damaged, error) if damaged else error

    def _stalled(self) -> TransferError:
        return TransferError(
            f"{self.shown} has not gone on for {_STALL_S:g} s.",
            hint="Does the facility's disk answer? What its process does is noted in "
            f"{self.run}/exchange of its state directory.",
        )

    async def _signed(self, numbers: Sequence[int]) -> dict[str, str]:
        if not numbers:
            return {}
        keys = [self.key(self.pieces[number]) for number in numbers]
        verb: Literal["GET", "PUT"] = "GET" if self.op == "fetch" else "PUT"
        sign, lasts = self.shelf.bucket.sign, self.options.expires
        urls = await asyncio.to_thread(sign, verb, keys, lasts)
        return dict(zip(map(str, numbers), urls, strict=True))


class _Watch:
    """Sees for how long nothing was brought over; unanswered questions don't count."""

    def __init__(self) -> None:
        self._bytes, self._quiet, self._at = -1, 0.0, time.monotonic()

    def quiet_s(self, there: int) -> float:
        """Return the seconds for which so many bytes have been there."""
        now = time.monotonic()
        self._quiet += min(now - self._at, 2 * _SLOWEST_S)
        if there != self._bytes:
            self._bytes, self._quiet = there, 0.0
        self._at = now
        return self._quiet


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
            uploads.cancel()
            await asyncio.wait({uploads})
        return reply.moved

    def hear(self, reply: Reply) -> None:
        """See `Part.hear`."""
        self._errand.show(reply.bytes, reply.faults)

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
            await shelf.ensure(run, piece, self._source / piece.name)
            self._there.add(number)
            self.news.set()
