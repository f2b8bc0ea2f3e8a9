"""Reading and appending events; every record is on disk before `append` returns.

A crash can only tear the last line. Such a line was never acted on, so a reader
ignores it and a writer cuts it off. Damage anywhere else is an error that names the
line, because what follows it can't be trusted.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from hansa.core.errors import (
    JournalCorrupt,
    JournalError,
    JournalLocked,
    JournalTooNew,
    StorageFull,
)
from hansa.core.events import Event
from hansa.journal.lease import Lease, sync_directory
from hansa.journal.line import Record, decode, encode, is_whole

_log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def read(path: Path, recover: bool = False) -> Iterator[Record]:
    """Yield the records of a journal in order; a torn last line is left out.

    Args:
        path: The journal's file.
        recover: Stop before the first damaged line instead of raising, to see what
            can be saved; the damage is logged.

    Raises:
        JournalError: There is no such file.
        JournalCorrupt: A line that is not the last one is damaged, or numbers jump.
        JournalTooNew: A newer Hansa wrote a line.
    """
    with _open_to_read(path) as file:
        try:
            for record, _ in _scan(path, file):
                yield record
        except JournalCorrupt as error:
            if not recover:
                raise
            _log.warning("%s Only the records before it are used.", error.message)


def _open_to_read(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise JournalError(
            f"There is no journal {path}.", hint="Check the run's id and directory."
        ) from None


def _scan(path: Path, file: BinaryIO) -> Iterator[tuple[Record, int]]:
    """Yield each record with the offset at which its line ends."""
    end = 0
    line, number = file.readline(), 1
    while line:
        following = file.readline()
        if not is_whole(line):
            if following and line.endswith(b"\n"):
                raise _damaged(path, number, "Its checksum does not match.")
            # Also what a reader sees of a line that is being written right now.
            _log.info("%s: the last line (%d) is not whole; ignored.", path, number)
            return
        end += len(line)
        yield _record(path, number, line), end
        line, number = following, number + 1


def _tail(path: Path) -> tuple[int, int]:
    """Return the number of the last whole record and the offset where it ends."""
    seq = end = 0
    with path.open("rb") as file:
        for record, offset in _scan(path, file):
            seq, end = record.seq, offset
    return seq, end


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        record = decode(line)
    except JournalTooNew as error:
        raise JournalTooNew(
            f"{path}, line {number}: {error.message}", hint=error.hint
        ) from None
    except JournalCorrupt as error:
        raise _damaged(path, number, error.message) from None
    if record.seq != number:
        raise _damaged(path, number, f"It has number {record.seq}; {number} is due.")
    return record


def _damaged(path: Path, number: int, what: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path}, line {number} is damaged. {what}",
        hint=f"Restore the file from a copy, or keep its first {number - 1} lines "
        "and resume the run from there.",
    )


class Journal:
    """The one writer of a journal; a context manager that closes the file.

    Use `Journal.open`. Reading goes through `read`, at any time, by anyone.
    """

    def __init__(self, path: Path, lease: Lease, fd: int, seq: int, end: int) -> None:
        self.path = path
        self._lease = lease
        self._fd = fd
        self._seq = seq
        self._end = end
        self._broken = False

    @classmethod
    def open(cls, path: Path, lease: Lease) -> Self:
        """Open a journal for appending; create it, or cut off its torn last line.

        Args:
            path: The journal's file; its directory exists.
            lease: Proof that no other process writes; checked while appending.

        Raises:
            JournalCorrupt: A line in the middle is damaged.
            JournalTooNew: A newer Hansa wrote a line.
            JournalLocked: The lease was taken over.
        """
        lease.ensure()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            sync_directory(path.parent)
            seq, end = _tail(path)
            if _cut(fd, end):
                _log.warning("%s: a torn last line was cut off.", path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, lease, fd, seq, end)

    @property
    def seq(self) -> int:
        """Number of the last record; 0 in an empty journal."""
        return self._seq

    def append(self, event: Event, digest: str) -> Record:
        """Write one event; when this returns, it survives a power cut.

        Args:
            event: What happened.
            digest: Opaque word kept beside it.

        Raises:
            StorageFull: No space; the journal is as before and may be tried again.
            JournalLocked: Another process has taken the journal over.
            JournalError: The disk failed; this writer refuses to go on.
        """
        self._check_ours()
        record = Record(self._seq + 1, digest, event)
        line = encode(record)
        try:
            _write(self._fd, line)
            os.fsync(self._fd)
        except OSError as error:
            raise self._undo(error) from error
        self._seq, self._end = record.seq, self._end + len(line)
        return record

    def _check_ours(self) -> None:
        if self._broken:
            raise JournalError(
                f"{self.path} is closed, or a write to it failed before.",
                hint="Check the disk, then resume the run.",
            )
        self._lease.ensure()
        if os.fstat(self._fd).st_size != self._end:
            self._broken = True
            raise JournalLocked(
                f"Another process has written to {self.path}.",
                hint="See `hansa status` for who holds the run; stop one of the two.",
                transient=False,
            )

    def _undo(self, error: OSError) -> JournalError | StorageFull:
        """Cut off what a failed append left, and return what to raise."""
        # After a failed fsync the kernel may have dropped the pages: only a lack
        # of space, cut off cleanly, leaves a writer that may go on.
        self._broken = True
        try:
            _cut(self._fd, self._end)
        except OSError as second:
            return JournalError(
                f"{self.path} can't be written ({error}) nor cut back ({second}).",
                hint="Check the disk, then resume the run; a torn line is cut off.",
            )
        if error.errno in _FULL:
            self._broken = False
            return StorageFull(
                f"No space is left to write {self.path}: {error.strerror}.",
                hint="Free space or raise the quota, then resume the run.",
            )
        return JournalError(
            f"{self.path} can't be written: {error}.",
            hint="Check the disk, then resume the run.",
        )

    def close(self) -> None:
        """Close the file; the lease stays with its owner. Harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._broken = -1, True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _write(fd: int, line: bytes) -> None:
    # One write in practice; a short one (disk nearly full) is followed by its error.
    while line:
        line = line[os.write(fd, line) :]


def _cut(fd: int, end: int) -> bool:
    """Shorten the file to `end` bytes; tell whether there was anything to cut."""
    if os.fstat(fd).st_size == end:
        return False
    os.ftruncate(fd, end)
    os.fsync(fd)
    return True
