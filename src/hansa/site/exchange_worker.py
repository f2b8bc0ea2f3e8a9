"""The process that carries bytes between a facility's mailbox and a bucket.

::

    python -m hansa.site.exchange_worker FOLDER

All that it is told lies in FOLDER (`exchange_notes`). It brings the pieces of a
directory in a few threads, asks for fresh URLs where it needs them, notes how far it
is, and takes up what an earlier process has left.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hansa.core.errors import FacilityError, HansaError, StorageFull, TransferError
from hansa.core.retry import RetryPolicy
from hansa.mover import landing
from hansa.mover.base import Damaged
from hansa.mover.s3_directory import URLS, Piece, cut
from hansa.site.exchange_directory import Arriving, Leaving, Side
from hansa.site.exchange_http import LineFault, NotThere, Refusal, Service
from hansa.site.exchange_notes import DONE, LEFT, MOVING, Notes, Status, failed

_THREADS = 4
_TICK_S = 0.2
_BEAT_S = 2.0
_REFUSALS = 3
_RETRY = RetryPolicy(attempts=8, first=0.25, longest=30.0)
PATIENCE_S = 120.0
"""So long it waits for URLs that nobody brings."""


class Board:
    """What the threads share: pieces to do, URLs, and how far each piece is.

    Each method may be called from any thread.

    Args:
        pieces: All pieces of the directory.
        status: Where an earlier process left off.
    """

    def __init__(self, pieces: Sequence[Piece], status: Status) -> None:
        self._pieces = pieces
        self._have = {one.number: status.have.get(str(one.number), 0) for one in pieces}
        self._moved, self._host = status.moved, status.host
        self._urls: dict[int, tuple[str, float]] = {}
        self._taken: set[int] = set()
        self._going: set[int] = set()
        self._faults = 0
        self._damaged: dict[str, HansaError] = {}
        self._error: HansaError | None = None
        self._finished = False
        self._changed = threading.Condition()
        self._busy = time.monotonic()

    # --- for the thread that watches --------------------------------------------------

    def supply(self, urls: Mapping[int, tuple[str, float]]) -> None:
        """Take fresh URLs, each with its end in unix seconds."""
        with self._changed:
            self._urls.update(urls)
            self._busy = time.monotonic()
            self._changed.notify_all()

    def idle_s(self) -> float:
        """Return for how long nothing has been done, for lack of URLs."""
        with self._changed:
            if self._going or not self._wants():
                return 0.0
            return time.monotonic() - self._busy

    def status(self) -> Status:
        """Return how far all of it is."""
        with self._changed:
            open_ = (n for n, one in enumerate(self._pieces) if not self._whole(one))
            status = Status(
                state=MOVING,
                have={str(n): size for n, size in self._have.items() if size},
                moved=self._moved,
                ready=next(open_, len(self._pieces)),
                wants=tuple(self._wants()),
                faults=self._faults,
                host=self._host,
            )
            if not self._finished:
                return status
            error = self._error or next(iter(self._damaged.values()), None)
            if error is None:
                return replace(status, state=DONE, wants=())
            return replace(status, wants=(), **failed(error, self._damaged))

    # --- for those that work ----------------------------------------------------------

    @property
    def error(self) -> HansaError | None:
        """What ended all of it."""
        return self._error

    @property
    def sound(self) -> bool:
        """Tell whether nothing has failed."""
        with self._changed:
            return self._error is None and not self._damaged

    def have(self, piece: Piece) -> int:
        """Return the bytes of a piece that are there."""
        with self._changed:
            return self._have[piece.number]

    def set_have(self, name: str, whole: bool) -> None:
        """Count a file as all there, or not at all."""
        with self._changed:
            for one in self._pieces:
                if one.name == name:
                    self._have[one.number] = one.length if whole else 0

    def advance(self, piece: Piece, size: int) -> None:
        """Note that more bytes of a piece went over."""
        with self._changed:
            self._have[piece.number] += size
            self._moved += size

    def whole(self, name: str) -> bool:
        """Tell whether all of a file is there, and nobody is about it any more."""
        with self._changed:
            mine = [one for one in self._pieces if one.name == name]
            return all(
                self._whole(one) and one.number not in self._taken for one in mine
            )

    def take(self) -> Piece | None:
        """Return the next piece, for one thread alone; None: there is no more."""
        with self._changed:
            if self._error is not None:
                return None
            for piece in self._pieces:
                if self._open(piece) and piece.number not in self._taken:
                    self._taken.add(piece.number)
                    return piece
            return None

    def put_back(self, piece: Piece) -> bool:
        """Let go of a piece; tell whether its file is complete with it."""
        with self._changed:
            self._rest(piece)
            self._taken.discard(piece.number)
            return self.whole(piece.name)

    def begin(self, piece: Piece) -> str:
        """Return a URL for a piece, once there is a good one; empty: leave it be."""
        with self._changed:
            while self._error is None and self._open(piece):
                if url := self._url(piece.number):
                    self._going.add(piece.number)
                    return url
                self._changed.wait(_TICK_S)
            return ""

    def pause(self, piece: Piece, seconds: float) -> None:
        """Do nothing for a piece for a while."""
        with self._changed:
            self._rest(piece)
            self._changed.wait_for(lambda: self._error is not None, seconds)

    def stumble(self, piece: Piece, fault: LineFault) -> None:
        """Note a fault of the line; a URL that was refused is not used again."""
        with self._changed:
            self._faults += 1
            if isinstance(fault, Refusal):
                self._urls.pop(piece.number, None)

    def spoil(self, name: str, error: HansaError) -> None:
        """Note that the objects of a file are missing or damaged; others go on."""
        with self._changed:
            self._damaged[name] = error
            self.set_have(name, whole=False)
            self._changed.notify_all()

    def fail(self, error: HansaError) -> None:
        """Note what ends all of it; only the first one counts."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def finish(self) -> None:
        """Note that nothing more will be done."""
        with self._changed:
            self._finished = True

    # --- under the lock ---------------------------------------------------------------

    def _rest(self, piece: Piece) -> None:
        self._going.discard(piece.number)
        self._busy = time.monotonic()

    def _whole(self, piece: Piece) -> bool:
        return self._have[piece.number] >= piece.length

    def _open(self, piece: Piece) -> bool:
        return not self._whole(piece) and piece.name not in self._damaged

    def _url(self, number: int) -> str:
        url, until = self._urls.get(number, ("", 0.0))
        return url if until > time.time() else ""

    def _wants(self) -> list[int]:
        """Return the next pieces that no URL is good for."""
        ahead = [one.number for one in self._pieces if self._open(one)][:URLS]
        return [n for n in ahead if n not in self._going and not self._url(n)]


class Worker:
    """Carries out the task of one folder.

    Args:
        notes: The folder.
        patience: Seconds to wait for URLs.
    """

    def __init__(self, notes: Notes, patience: float = PATIENCE_S) -> None:
        self._notes = notes
        self._patience = patience
        self._task = notes.task()
        service = Service(self._task.origin)
        kind = Arriving if self._task.op == "fetch" else Leaving
        self._side: Side = kind(self._task, service)
        pieces = cut(self._task.files, self._task.part_bytes)
        self._board = Board(pieces, notes.status())

    def run(self) -> None:
        """Work until all is done, has failed, or nobody brings URLs any more."""
        work = threading.Thread(target=self._work, daemon=True)
        work.start()
        shown, at = None, 0.0
        while work.is_alive():
            work.join(_TICK_S)
            urls = self._notes.fresh_urls()
            if urls is not None:
                self._board.supply(urls)
            status = self._board.status()
            if self._board.idle_s() > self._patience:
                self._end(replace(status, state=LEFT))
                return
            due = status != shown or time.monotonic() - at > _BEAT_S
            if due and not status.final:
                self._notes.show(status)
                shown, at = status, time.monotonic()
        self._end(self._board.status())

    def _end(self, status: Status) -> None:
        self._notes.forget_urls()  # before the end is told: they are secrets
        self._notes.show(status)

    def _work(self) -> None:
        try:
            with landing.readable_errors("The bucket", self._task.directory):
                self._bring()
        except Exception as error:  # a word for the server in any case
            self._board.fail(self._explained(error))
        if isinstance(self._board.error, StorageFull):
            self._side.make_room()
        self._board.finish()

    def _bring(self) -> None:
        found = self._side.prepare()
        for name, whole in (found or {}).items():
            self._board.set_have(name, whole)
        if found is None:
            return
        for name in self._task.files:
            if self._board.whole(name):
                self._complete(name)
        threads = [threading.Thread(target=self._carry) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._board.sound:
            self._side.settle()

    def _carry(self) -> None:
        while (piece := self._board.take()) is not None:
            try:
                with landing.readable_errors("The bucket", self._task.directory):
                    try:
                        self._bring_piece(piece)
                    finally:
                        complete = self._board.put_back(piece)
                    if complete:
                        self._complete(piece.name)
            except NotThere as missing:
                error = TransferError(f"{piece.name} is not in the bucket: {missing}.")
                self._board.spoil(piece.name, error)
            except Exception as error:  # else the others would wait for ever
                self._board.fail(self._explained(error))

    def _bring_piece(self, piece: Piece) -> None:
        faults = refusals = 0
        while url := self._board.begin(piece):
            had = self._board.have(piece)
            try:
                for size in self._side.carry(piece, url, had):
                    self._board.advance(piece, size)
            except LineFault as fault:
                self._board.stumble(piece, fault)
                if self._board.have(piece) > had:  # something came: it counts anew
                    faults = refusals = 0
                refused = isinstance(fault, Refusal)
                faults, refusals = faults + (not refused), refusals + refused
                lasting = fault.lasting or refusals >= _REFUSALS
                if lasting or not _RETRY.allows(faults):
                    raise _gave_up(piece, fault) from None
                wait = 0.0 if refused else _RETRY.delay(faults, str(piece.number))
                self._board.pause(piece, wait)
            else:
                return

    def _complete(self, name: str) -> None:
        try:
            self._side.complete(name)
        except Damaged as damage:
            self._board.spoil(name, damage)

    def _explained(self, error: Exception) -> HansaError:
        if isinstance(error, HansaError):
            return error
        # Its text may hold a URL: only where it happened is noted.
        traceback.print_tb(error.__traceback__)
        return FacilityError(
            f"The exchange with the bucket failed: {type(error).__name__}.",
            hint=f"This is a bug in Hansa; {self._notes.log} at the facility tells "
            "where.",
        )


def _gave_up(piece: Piece, fault: LineFault) -> TransferError:
    refused = isinstance(fault, Refusal)
    hint = (
        "Fresh URLs are refused too: may the server's credentials read and write the "
        "bucket, and is the clock of the server right?"
        if refused
        else "Can the facility's login nodes connect to that host?"
    )
    return TransferError(
        f"{piece.name} can't be exchanged with the bucket: {fault}.",
        hint=hint,
        transient=not (refused or fault.lasting),
    )


def main(arguments: list[str]) -> int:
    """Carry out the task of a folder; return the exit code."""
    Worker(Notes(Path(arguments[0]))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
