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
from dataclasses import replace
from pathlib import Path

from hansa.core.errors import FacilityError, HansaError, TransferError
from hansa.mover import landing
from hansa.mover.base import Damaged
from hansa.mover.s3_pieces import cut
from hansa.site.exchange_board import Board
from hansa.site.exchange_directory import Arriving, Leaving, Side
from hansa.site.exchange_http import LineFault, NotThere, Service
from hansa.site.exchange_notes import LEFT, Notes

_THREADS = 4
_TICK_S = 0.2
_BEAT_S = 2.0
PATIENCE_S = 120.0
"""So long it waits for URLs that nobody brings."""


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
            if self._board.idle_s() > self._patience:
                self._notes.show(replace(self._board.status(), state=LEFT))
                return
            status = self._board.status()
            due = status != shown or time.monotonic() - at > _BEAT_S
            if due and not status.final:
                self._side.beat()
                self._notes.show(status)
                shown, at = status, time.monotonic()
        self._notes.forget_urls()  # before the end is told: they are secrets
        self._notes.show(self._board.status())

    def _work(self) -> None:
        try:
            with landing.readable_errors("The bucket", self._task.directory):
                self._bring()
        except HansaError as error:
            self._board.fail(error)
        except Exception as error:  # a word for the server in any case
            # Its text may hold a URL: only where it happened is noted.
            traceback.print_tb(error.__traceback__)
            self._board.fail(_bug(self._notes, error))
        self._board.finish()

    def _bring(self) -> None:
        if self._side.prepare(self._board):
            for name in self._task.files:
                self._board.set_have(name, whole=True)
            return
        for name in self._task.files:
            self._complete(name)
        threads = [threading.Thread(target=self._carry) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._board.sound:
            self._side.settle()

    def _carry(self) -> None:
        while (taken := self._board.take()) is not None:
            piece, target = taken
            try:
                with landing.readable_errors("The bucket", self._task.directory):
                    self._side.carry(piece, target, self._board)
                    self._complete(piece.name)
            except LineFault as fault:
                self._board.stumble(piece, fault)
            except NotThere as missing:
                error = TransferError(f"{piece.name} is not in the bucket: {missing}.")
                self._board.spoil(piece.name, error)
            except HansaError as error:
                self._board.fail(error)
            except Exception as error:  # else the others would wait for ever
                traceback.print_tb(error.__traceback__)
                self._board.fail(_bug(self._notes, error))
            finally:
                self._board.put_back(piece)

    def _complete(self, name: str) -> None:
        if self._board.whole(name):
            try:
                self._side.complete(name)
            except Damaged as damage:
                self._board.spoil(name, damage)


def _bug(notes: Notes, error: Exception) -> FacilityError:
    return FacilityError(
        f"The exchange with the bucket failed: {type(error).__name__}.",
        hint=f"This is a bug in Hansa; {notes.log} at the facility tells where.",
    )


def main(arguments: list[str]) -> int:
    """Carry out the task of a folder; return the exit code."""
    Worker(Notes(Path(arguments[0]))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
