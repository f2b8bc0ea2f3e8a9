"""Over a bucket of an S3 service: for facilities that can reach one, and little else.

The server has credentials for the bucket; a facility has none. To put a directory the
server uploads it and hands the facility's site agent signed URLs (`fetch`); to get one
it hands over URLs that may be written (`deliver`), and downloads what comes. A URL is
signed when the facility is about to use it, and again when it asks for fresh ones, so
waiting in a queue never makes one stale. What is not whole by its sha256 never counts
as there, on either side.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel

from hansa.core.errors import HansaError, UsageError
from hansa.core.files import FileRecord, FileRecords
from hansa.core.remarks import OK, PROBLEM, Remark
from hansa.mover import landing, s3_directory
from hansa.mover.base import MANIFEST, Moved, Place
from hansa.mover.s3_delivering import Delivering
from hansa.mover.s3_errand import Errand, Fetching
from hansa.mover.s3_options import S3Options
from hansa.mover.s3_shelf import Shelf, borrow, give_back


class S3Mover:
    """Objects lie below ``<prefix>/<run>/``, named by content, and go with the run.

    Args:
        options: Its options.
        place: Where it works.

    Raises:
        PluginError: The extra ``s3`` is not installed.
    """

    Options: ClassVar[type[BaseModel]] = S3Options

    def __init__(self, options: S3Options, place: Place) -> None:
        self._options = options
        self._place = place
        self._shelf: Shelf | None = borrow(options)

    async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
        """Bring a directory to the facility; see `Mover.put`."""
        began = time.monotonic()
        run, place = s3_directory.mailbox_place(target)
        landing.check_names(files, source)
        manifest = await asyncio.to_thread(_checked, source, files)
        errand = self._errand("fetch", run, place, {**files, MANIFEST: manifest})
        shelf = self._open
        with shelf.using(run, place, errand.pieces):
            size = await errand.until_whole(
                lambda: Fetching(errand, source).carry_out()
            )
        await shelf.sweep(run)
        return Moved(bytes=size, seconds=time.monotonic() - began)

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        """Fetch a directory from the facility; see `Mover.get`."""
        began = time.monotonic()
        run, place = s3_directory.mailbox_place(source)
        landing.check_names(files, source)
        manifest = await self._errand("deliver", run, place, files).manifest()
        whole = {**files, MANIFEST: manifest}
        if await asyncio.to_thread(s3_directory.arrived, target, whole):
            return Moved(bytes=0, seconds=time.monotonic() - began)
        errand = self._errand("deliver", run, place, whole)
        size = await errand.until_whole(lambda: Delivering(errand, target).carry_out())
        await errand.drop(whole)
        return Moved(bytes=size, seconds=time.monotonic() - began)

    async def check(self) -> list[Remark]:
        """Look into the bucket, and ask the facility whether it reaches its host."""
        return [await self._look_here(), await self._look_there()]

    async def close(self) -> None:
        """Let go of the bucket; the last mover that does removes the run's objects.

        They stay when the run was interrupted: a resume need not send them again.
        """
        shelf, self._shelf = self._shelf, None
        if shelf is not None:
            await give_back(shelf, forget=self._place.log.closed)

    # --- their parts ------------------------------------------------------------------

    @property
    def _open(self) -> Shelf:
        if self._shelf is None:
            raise UsageError("This mover was closed.")
        return self._shelf

    def _errand(
        self,
        op: Literal["fetch", "deliver"],
        run: str,
        place: str,
        files: FileRecords,
    ) -> Errand:
        return Errand(
            op=op,
            run=run,
            place=place,
            files=files,
            shelf=self._open,
            options=self._options,
            there=self._place,
        )

    async def _look_here(self) -> Remark:
        shelf, where = self._open, f"{self._options.prefix}/.check"
        try:
            await asyncio.to_thread(shelf.bucket.sizes, where)
        except HansaError as error:
            return Remark("bucket", PROBLEM, error.message, error.hint or "")
        return Remark("bucket", OK, f"{self._options.bucket} can be listed")

    async def _look_there(self) -> Remark:
        shelf = self._open
        try:
            origin = await asyncio.to_thread(lambda: shelf.bucket.origin)
            await self._place.ask({"schema": 1, "op": "reach", "origin": origin})
        except HansaError as error:
            return Remark("line", PROBLEM, error.message, error.hint or "")
        return Remark("line", OK, f"{self._place.facility} reaches {origin}")


def _checked(source: Path, files: FileRecords) -> FileRecord:
    """Return the manifest's record, of a directory whose files are as it promises."""
    s3_directory.verify(source, files)
    return s3_directory.manifest_record(source)
