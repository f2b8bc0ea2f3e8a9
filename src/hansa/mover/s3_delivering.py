"""The server's part while a facility delivers: to download what it has uploaded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from hansa.core.errors import TransferError
from hansa.mover import landing, s3_directory
from hansa.mover.base import Damaged
from hansa.mover.s3_directory import Piece
from hansa.mover.s3_errand import Errand, Reply, Spoilt


class Delivering:
    """Downloads in order, behind the facility; what is here is not asked for again.

    Args:
        errand: What is to be moved.
        target: The directory here.
    """

    def __init__(self, errand: Errand, target: Path) -> None:
        self.news = asyncio.Event()
        self._errand = errand
        self._target = target
        self._aside = target.with_name(f".{target.name}.arriving")
        self._ready = 0
        self._more = asyncio.Event()
        self._done = 0
        self._moved = 0
        self._over = False

    async def carry_out(self) -> int:
        """Have the directory here; return the bytes that were downloaded.

        Raises:
            Spoilt: Objects are missing or damaged.
            HansaError: The facility or the bucket failed.
        """
        errand = self._errand
        with landing.readable_errors(errand.shown, self._target):
            here = await asyncio.to_thread(self._prepare)
        kept = await asyncio.to_thread(self._kept, here)
        downloads = asyncio.create_task(self._download(here))
        try:
            await errand.converse(self, downloads, kept)
            self._hear(len(errand.pieces))
            await downloads
        finally:
            self._over = True
            downloads.cancel()
            await asyncio.wait({downloads})
        await asyncio.to_thread(self._accept)
        return self._moved

    def hear(self, reply: Reply) -> None:
        """See `Part.hear`."""
        self._hear(reply.ready)
        self._errand.show(self._done, reply.faults)

    def may_have(self, wanted: Sequence[int]) -> list[int]:
        """See `Part.may_have`: all that it wants."""
        return list(wanted)

    def _hear(self, ready: int) -> None:
        self._ready = max(self._ready, ready)
        self._more.set()

    def _prepare(self) -> set[int]:
        """Return the pieces that an earlier try has left here."""
        self._aside.mkdir(parents=True, exist_ok=True)
        for entry in self._aside.iterdir():
            if entry.name not in self._errand.files:
                entry.unlink()
        here = set()
        for name in self._errand.files:
            path = self._aside / name
            path.touch()
            size = path.stat().st_size
            mine = [one for one in self._errand.pieces if one.name == name]
            whole = [one for one in mine if one.offset + one.length <= size]
            os.truncate(path, sum(one.length for one in whole))
            here |= {one.number for one in whole}
        return here

    def _kept(self, here: set[int]) -> list[int]:
        """Return the pieces that are here, or in the bucket."""
        shelf, run = self._errand.shelf, self._errand.run
        folder = f"{shelf.folder(run)}/in/{self._errand.there.facility}"
        sizes = shelf.bucket.sizes(folder)
        pieces = self._errand.pieces
        there = {
            one.number
            for one in pieces
            if sizes.get(self._errand.key(one)) == one.length
        }
        return sorted(here | there)

    async def _download(self, here: set[int]) -> None:
        for piece in self._errand.pieces:
            while self._ready <= piece.number and piece.number not in here:
                self._more.clear()
                await self._more.wait()
            if piece.number not in here:
                await self._errand.shelf.carry(lambda: self._take(piece))  # noqa: B023
                self._moved += piece.length
            self._done += piece.length

    def _take(self, piece: Piece) -> None:
        """Append one piece to its file."""
        path, left = self._aside / piece.name, piece.length
        blocks = self._errand.shelf.bucket.download(self._errand.key(piece))
        with (
            landing.readable_errors(self._errand.shown, self._target),
            path.open("r+b") as file,
        ):
            file.seek(piece.offset)
            try:
                for block in blocks:
                    left -= len(block)
                    if left < 0 or self._over:
                        break
                    file.write(block)
            except FileNotFoundError:
                raise self._gone(piece) from None
        if left and not self._over:
            raise self._gone(piece)

    def _gone(self, piece: Piece) -> Spoilt:
        error = TransferError(
            f"The object of {piece.name} for {self._errand.shown} is missing in the "
            "bucket, or not whole.",
            hint="Does something else write below the mover's `prefix`?",
        )
        return Spoilt([piece.name], error)

    def _accept(self) -> None:
        """Verify all of it and give it its place."""
        errand, aside = self._errand, self._aside
        damaged: dict[str, TransferError] = {}
        with landing.readable_errors(errand.shown, self._target):
            for name, record in errand.files.items():
                try:
                    with landing.syncing(aside / name):
                        landing.verify(aside / name, record, f"{errand.shown}/{name}")
                except Damaged as error:
                    damaged[name] = error
                    (aside / name).unlink()
            if damaged:
                raise Spoilt(damaged, next(iter(damaged.values())))
            s3_directory.settle(aside, self._target, errand.files)
