"""A directory of the mailbox that arrives from a bucket, or leaves for one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from hansa.core.errors import HansaError, TransferError
from hansa.core.files import FileRecord
from hansa.mover import landing, s3_directory
from hansa.mover.base import Damaged
from hansa.mover.s3_directory import Piece
from hansa.site.exchange_http import BLOCK, Service
from hansa.site.exchange_notes import Task

_SIBLINGS = 2


class Side(Protocol):
    """What an exchange does with its directory."""

    def prepare(self) -> Mapping[str, bool] | None:
        """Say of files that they are all there, or not at all; of others that is known.

        None: nothing is left to do.
        """
        ...

    def carry(self, piece: Piece, target: str, start: int) -> Iterator[int]:
        """Bring one piece over, from a byte on; yield the bytes of each step."""
        ...

    def complete(self, name: str) -> None:
        """Do what is due when all pieces of a file are over."""
        ...

    def settle(self) -> None:
        """Do what is due when all files are."""
        ...

    def make_room(self) -> None:
        """Give back what it takes of a disk that is full."""
        ...


class Arriving:
    """Pieces come into files of a hidden folder beside the directory's final place.

    A file that another directory beside it has too, by its manifest, is copied from
    there and does not travel.

    Args:
        task: What is to be brought.
        service: Where it comes from.
    """

    def __init__(self, task: Task, service: Service) -> None:
        self._files = task.files
        self._service = service
        self._target = Path(task.directory)
        self._aside = self._target.with_name(f".{self._target.name}.{task.name}")

    def prepare(self) -> Mapping[str, bool] | None:
        """See `Side.prepare`."""
        if s3_directory.arrived(self._target, self._files):
            return None
        self._aside.mkdir(parents=True, exist_ok=True)
        for entry in self._aside.iterdir():
            if entry.name not in self._files:
                entry.unlink()
        found = {}
        for name, record in self._files.items():
            path = self._aside / name
            if not path.is_file() or path.stat().st_size != record.bytes:
                found[name] = self._copied(name, record)
                if not found[name]:
                    path.unlink(missing_ok=True)
                    path.touch()
                    os.truncate(path, record.bytes)
        return found

    def carry(self, piece: Piece, target: str, start: int) -> Iterator[int]:
        """See `Side.carry`."""
        os.utime(self._aside)  # a hidden folder that is a day old counts as left behind
        with (self._aside / piece.name).open("r+b", buffering=0) as file:
            file.seek(piece.offset + start)
            for block in self._service.get(target, start, piece.length):
                _write(file, block)
                yield len(block)

    def complete(self, name: str) -> None:
        """See `Side.complete`: verify it."""
        path = self._aside / name
        try:
            with landing.syncing(path):
                landing.verify(path, self._files[name], f"{self._target}/{name}")
        except Damaged:
            path.unlink()
            raise

    def settle(self) -> None:
        """See `Side.settle`: give it its final name."""
        s3_directory.settle(self._aside, self._target, self._files)

    def make_room(self) -> None:
        """See `Side.make_room`."""
        shutil.rmtree(self._aside, ignore_errors=True)

    def _copied(self, name: str, record: FileRecord) -> bool:
        for folder in self._siblings():
            if _promised(folder).get(name) == _as_noted(record):
                with suppress(HansaError, OSError):
                    landing.sized(folder / name, record)
                    shutil.copyfile(folder / name, self._aside / name)
                    landing.verify(self._aside / name, record, folder / name)
                    return True
        return False

    def _siblings(self) -> list[Path]:
        """Return the newest directories beside the target."""
        beside = [
            (entry.lstat().st_mtime, entry)
            for entry in self._target.parent.iterdir()
            if not entry.name.startswith(".") and not entry.is_symlink()
        ]
        return [entry for _, entry in sorted(beside, reverse=True)[:_SIBLINGS]]


class Leaving:
    """Pieces go out of the files of a directory that is complete and verified.

    Args:
        task: What is to be brought.
        service: Where it goes.
    """

    def __init__(self, task: Task, service: Service) -> None:
        self._files = task.files
        self._service = service
        self._source = Path(task.directory)

    def prepare(self) -> Mapping[str, bool] | None:
        """See `Side.prepare`: verify all of it before any of it leaves."""
        s3_directory.verify(self._source, self._files)
        return {}

    def carry(self, piece: Piece, target: str, start: int) -> Iterator[int]:
        """See `Side.carry`: a piece that broke off begins anew."""
        del start
        path = self._source / piece.name
        self._service.put(target, _part(path, piece), piece.length)
        yield piece.length

    def complete(self, name: str) -> None:
        """See `Side.complete`."""

    def settle(self) -> None:
        """See `Side.settle`."""

    def make_room(self) -> None:
        """See `Side.make_room`."""


def _write(file: Any, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]


def _part(path: Path, piece: Piece) -> Iterator[bytes]:
    """Return a piece's bytes; no trouble with the file looks like one of the line."""
    with (
        landing.readable_errors(path, "the bucket"),
        os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", 0) as file,
    ):
        file.seek(piece.offset)
        left = piece.length
        while left:
            block = file.read(min(BLOCK, left))
            if not block:
                raise TransferError(f"{path} became shorter while it was sent.")
            left -= len(block)
            yield block


def _promised(folder: Path) -> Mapping[str, Any]:
    """Return what a directory's manifest says of its files; nothing if it says none."""
    try:
        files = json.loads(landing.read_manifest(folder)).get("files")
    except (OSError, ValueError, AttributeError, HansaError):
        return {}
    return files if isinstance(files, Mapping) else {}


def _as_noted(record: FileRecord) -> dict[str, object]:
    return {"bytes": record.bytes, "sha256": record.sha256}
