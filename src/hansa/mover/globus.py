"""Files go by Globus Transfer, between the facility's collection and the server's own.

The bytes never pass through this process: the service has the two collections' data
transfer nodes send them to each other. This process only says which files, hashes what
came, and gives it its name.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import ClassVar
from weakref import WeakValueDictionary

from pydantic import BaseModel

from hansa.core.errors import TransferError
from hansa.core.files import FileRecord, FileRecords
from hansa.core.remarks import Remark
from hansa.mover import globus_check, globus_here, landing
from hansa.mover.base import MANIFEST, Damaged, Moved, Place, Progress
from hansa.mover.globus_options import GlobusOptions
from hansa.mover.globus_queue import Queue, Wish
from hansa.mover.globus_route import ServiceRoute
from hansa.mover.globus_service import Entry, Item, Service, Spot, record_item

_ERRAND_S = 600.0
_locks: WeakValueDictionary[tuple[int, str], asyncio.Lock] = WeakValueDictionary()
"""One for each directory that is being written, of all movers of this process."""


class GlobusMover:
    """One task per direction at a time, with all the files that wait for it.

    To the facility, files go into a hidden directory that is renamed when all are
    there; Globus compares each with our own sha256 on both sides. From there, they
    come into a hidden directory here and are hashed once more. Each submission is in
    the log before the service hears of it; see `hansa.mover.globus_queue` for what
    follows from that.

    Args:
        options: Its options.
        place: Where it works.
    """

    Options: ClassVar[type[BaseModel]] = GlobusOptions

    def __init__(self, options: GlobusOptions, place: Place) -> None:
        self._options, self._place = options, place
        self._there = Spot(
            collection=options.collection, name=place.facility, key="mover.path"
        )
        self._here = Spot(
            collection=options.here.collection,
            name="the server",
            key="mover.here.path",
        )
        consents = {
            one.collection for one in (options, options.here) if one.data_access
        }
        self._service = Service(sorted(consents))
        self._watched: dict[str, Progress] = {}
        self._out = self._queue("put", self._here, self._there)
        self._in = self._queue("get", self._there, self._here)

    def _queue(self, direction: str, source: Spot, target: Spot) -> Queue:
        def watch(progress: Progress | None) -> None:
            self._show(direction, progress)

        route = self._route(direction, source, target, self._options.deadline)
        return Queue(route, self._place.log, watch)

    def _route(
        self, direction: str, source: Spot, target: Spot, deadline: float
    ) -> ServiceRoute:
        return ServiceRoute(
            self._service,
            direction,
            source=source,
            target=target,
            label=f"{direction} {self._place.facility}",
            deadline=deadline,
        )

    async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
        """Bring a directory to the facility; see `Mover.put`."""
        place = "/".join(landing.mailbox_parts(target))
        landing.check_names(files, source)
        key = f"{self._there.collection}:{self._remote(place)}"
        return await _alone(key, lambda: self._put(source, place, files))

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        """Fetch a directory from the facility; see `Mover.get`."""
        place = "/".join(landing.mailbox_parts(source))
        landing.check_names(files, source)
        return await _alone(str(target), lambda: self._get(place, target, files))

    async def check(self) -> list[Remark]:
        """Look at the login and at both collections; nothing is changed."""
        options, here = self._options, self._options.here
        ends = globus_check.Ends(
            there=self._there,
            mailbox=options.path,
            here=self._here,
            root=here.root,
            path=here.path,
        )
        needed = {one.collection: one.data_access for one in (options, here)}
        return await globus_check.remarks(self._service, ends, needed)

    async def close(self) -> None:
        """Stop looking after tasks; they go on if a later process will want them."""
        forget = self._place.log.closed
        await self._out.close(forget=forget)
        await self._in.close(forget=forget)
        self._service.close()

    # --- to the facility --------------------------------------------------------------

    async def _put(self, source: Path, place: str, files: FileRecords) -> int:
        manifest = await asyncio.to_thread(globus_here.checked, source, files)
        final = self._remote(place)
        record = _record(manifest)
        whole = {**files, MANIFEST: record}
        found = await self._service.listing(self._there, final)
        if found is not None and MANIFEST in found:
            await self._compare(place, found, manifest, source)
            wish = self._outgoing(source, place, whole, final)
            async with self._out.carried(wish) as size:
                return size
        if found is not None:
            await self._service.rename(
                self._there, final, _beside(final, f"damaged-{os.urandom(4).hex()}")
            )
        origin = f"{self._options.here.collection}:{source}:{record.sha256}"
        token = hashlib.sha256(origin.encode()).hexdigest()[:12]
        aside = _beside(final, token)
        await self._make_room(place, aside)
        wish = self._outgoing(source, place, whole, aside)
        async with self._out.carried(wish) as size:
            await self._reveal(aside, place, whole, manifest, source)
        return size

    def _outgoing(
        self, source: Path, place: str, files: FileRecords, into: str
    ) -> Wish:
        origin = self._local(source)
        items = (
            record_item(f"{origin}/{name}", f"{into}/{name}", record)
            for name, record in files.items()
        )
        return Wish(place=place, items=tuple(items))

    async def _make_room(self, place: str, aside: str) -> None:
        """Make the hidden directory, with the directories above it if need be."""
        with suppress(TransferError):
            return await self._service.make_folder(self._there, aside)
        above = self._options.path
        for part in PurePosixPath(place).parent.parts:
            above = f"{above.rstrip('/')}/{part}"
            await self._service.make_folder(self._there, above)
        return await self._service.make_folder(self._there, aside)

    async def _reveal(
        self,
        aside: str,
        place: str,
        files: FileRecords,
        manifest: bytes,
        near: Path,
    ) -> None:
        """Give what arrived its final name."""
        final = self._remote(place)
        found = await self._service.listing(self._there, aside)
        try:
            _promised(found or {}, files, self._there.shown(aside))
            await self._service.rename(self._there, aside, final)
        except TransferError:
            # An earlier rename may have come through, though no answer came; or
            # somebody else was faster: what is there must be the same.
            there = await self._service.listing(self._there, final)
            if there is None or MANIFEST not in there:
                raise
            await self._compare(place, there, manifest, near)
            if found is not None:
                await self._service.remove(self._there, aside)

    async def _compare(
        self, place: str, found: Mapping[str, Entry], manifest: bytes, near: Path
    ) -> None:
        """Refuse what is there already under another manifest."""
        shown = self._there.shown(self._remote(place))
        same = found[MANIFEST].plain and found[MANIFEST].bytes == len(manifest)
        if not same or await self._manifest(place, near) != manifest:
            raise landing.another_manifest(shown)

    # --- from the facility ------------------------------------------------------------

    async def _get(self, place: str, target: Path, files: FileRecords) -> int:
        origin = self._remote(place)
        shown = self._there.shown(origin)
        size = await self._promise_of(origin, files)
        if await asyncio.to_thread(target.exists):
            manifest = await self._manifest(place, target)
            if await asyncio.to_thread(
                globus_here.has_arrived, shown, target, manifest, files
            ):
                return 0
        aside = globus_here.waiting(target)
        into = self._local(aside)
        await asyncio.to_thread(globus_here.prepare, shown, aside)
        items = [
            record_item(f"{origin}/{name}", f"{into}/{name}", record)
            for name, record in files.items()
        ]
        last = Item(
            origin=f"{origin}/{MANIFEST}", target=f"{into}/{MANIFEST}", bytes=size
        )
        async with self._in.carried(Wish(place=place, items=(*items, last))) as moved:
            await asyncio.to_thread(globus_here.accept, shown, aside, target, files)
        return moved

    async def _promise_of(self, origin: str, files: FileRecords) -> int:
        """Compare a listing with the records, before anything is moved.

        Returns:
            Bytes of the manifest there.
        """
        shown = self._there.shown(origin)
        found = await self._service.listing(self._there, origin)
        if found is None or MANIFEST not in found:
            raise Damaged(
                f"{shown} has no manifest.",
                hint="It is still being written, or was removed there.",
            )
        manifest = found[MANIFEST]
        if not manifest.plain or manifest.bytes > landing.MANIFEST_LIMIT:
            raise TransferError(
                f"The manifest of {shown} is no regular file, or too large for one.",
                transient=False,
            )
        _promised(found, files, shown)
        return manifest.bytes

    async def _manifest(self, place: str, near: Path) -> bytes:
        """Fetch a manifest, by a small task of its own; nobody notes it."""
        room = landing.hidden(globus_here.waiting(near), ".")
        origin = f"{self._remote(place)}/{MANIFEST}"
        shown = self._there.shown(origin)
        await asyncio.to_thread(globus_here.prepare, shown, room)
        try:
            target = f"{self._local(room)}/{MANIFEST}"
            deadline = min(_ERRAND_S, self._options.deadline)
            route = self._route("get", self._there, self._here, deadline)
            await route.run(Item(origin=origin, target=target, bytes=0), place)
            with landing.readable_errors(shown, room):
                return landing.read_manifest(room)
        finally:
            await asyncio.to_thread(globus_here.discard, room)

    # --- both -------------------------------------------------------------------------

    def _remote(self, place: str) -> str:
        return f"{self._options.path.rstrip('/')}/{place}"

    def _local(self, path: Path) -> str:
        """Return a path of this machine as the server's collection shows it.

        Raises:
            TransferError: The collection does not show it.
        """
        here = self._options.here
        root, real = here.root.expanduser().resolve(), path.resolve()
        if not real.is_relative_to(root):
            raise TransferError(
                f"{real} is outside of {root}, so the server's collection doesn't show "
                "it.",
                hint="Let `mover.here.root` be a directory that holds the runs folder, "
                "and `mover.here.path` the same directory as the collection "
                f"{here.collection} shows it.",
                transient=False,
            )
        relative = real.relative_to(root).as_posix()
        return f"{here.path.rstrip('/')}/{relative}"

    def _show(self, direction: str, progress: Progress | None) -> None:
        """Tell how both directions go, as one."""
        if progress is not None:
            self._watched[direction] = progress
        elif self._watched.pop(direction, None) is None:
            return
        now = self._watched.values()
        self._place.watch(
            Progress(
                bytes=sum(one.bytes for one in now),
                total=sum(one.total for one in now),
                rate=sum(one.rate for one in now),
                faults=sum(one.faults for one in now),
                status=next((one.status for one in now if one.status), ""),
            )
        )


async def _alone(key: str, work: Callable[[], Awaitable[int]]) -> Moved:
    """Do something that writes a directory while nobody else here writes it."""
    began = time.monotonic()
    lock = _locks.setdefault((id(asyncio.get_running_loop()), key), asyncio.Lock())
    async with lock:
        size = await work()
    return Moved(bytes=size, seconds=time.monotonic() - began)


def _beside(path: str, token: str) -> str:
    """Return a hidden name beside a path there."""
    parent, _, name = path.rpartition("/")
    return f"{parent}/.{name}.{token}"


def _promised(found: Mapping[str, Entry], files: FileRecords, shown: str) -> None:
    """Refuse a listing that lacks a file, or has one of another size.

    Raises:
        Damaged: It does.
    """
    for name, record in files.items():
        entry = found.get(name)
        if entry is not None and entry.plain and entry.bytes == record.bytes:
            continue
        how = (
            "is missing"
            if entry is None
            else f"has {entry.bytes} bytes of {record.bytes}"
            if entry.plain
            else "is no regular file"
        )
        raise Damaged(
            f"{shown} is not what its manifest promises: {name} {how}.",
            hint="It was damaged or is still being written.",
        )


def _record(manifest: bytes) -> FileRecord:
    return FileRecord(bytes=len(manifest), sha256=hashlib.sha256(manifest).hexdigest())
