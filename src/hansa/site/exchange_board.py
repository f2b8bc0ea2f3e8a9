"""What the threads of an exchange share: pieces to do, URLs, and how far each is."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from hansa.core.errors import HansaError, TransferError
from hansa.core.retry import RetryPolicy
from hansa.mover.s3_pieces import Piece
from hansa.site.exchange_http import LineFault, Refusal
from hansa.site.exchange_notes import DONE, MOVING, Status, failed
from hansa.site.exchange_request import URLS

_REFUSALS = 3
_RETRY = RetryPolicy(attempts=8, first=0.25, longest=30.0)


class Board:
    """Hands out pieces; each method may be called from any thread.

    Args:
        pieces: All pieces of the directory.
        status: Where an earlier process left off.
    """

    def __init__(self, pieces: Sequence[Piece], status: Status) -> None:
        self._pieces = pieces
        self._have = {one.number: status.have.get(str(one.number), 0) for one in pieces}
        self._moved, self._host = status.moved, status.host
        self._urls: dict[int, tuple[str, float]] = {}
        self._in_hand: set[int] = set()
        self._faults: dict[int, int] = {}
        self._refusals: dict[int, int] = {}
        self._not_before: dict[int, float] = {}
        self._damaged: dict[str, HansaError] = {}
        self._error: HansaError | None = None
        self._all_faults = 0
        self._finished = False
        self._changed = threading.Condition()
        self._busy = time.monotonic()

    # --- for the thread that watches --------------------------------------------------

    def supply(self, urls: Mapping[int, tuple[str, float]]) -> None:
        """Take fresh URLs, each with its end in unix seconds."""
        with self._changed:
            self._urls = {**self._urls, **urls}
            self._busy = time.monotonic()
            self._changed.notify_all()

    def idle_s(self) -> float:
        """Return for how long nothing has been done, for lack of URLs."""
        with self._changed:
            if self._in_hand or not self._wants():
                return 0.0
            return time.monotonic() - self._busy

    def status(self) -> Status:
        """Return how far all of it is."""
        with self._changed:
            status = Status(
                state=MOVING,
                have={str(n): size for n, size in self._have.items() if size},
                moved=self._moved,
                ready=self._ready(),
                wants=tuple(self._wants()),
                faults=self._all_faults,
                host=self._host,
            )
            error = self._error or next(iter(self._damaged.values()), None)
            return self._ended(status, error) if self._finished else status

    # --- for those that work ----------------------------------------------------------

    def have(self, piece: Piece) -> int:
        """Return the bytes of a piece that are there."""
        with self._changed:
            return self._have[piece.number]

    def whole(self, name: str) -> bool:
        """Tell whether all pieces of a file are there."""
        with self._changed:
            return all(self._is_whole(one) for one in self._pieces if one.name == name)

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
            self._faults.pop(piece.number, None)
            self._refusals.pop(piece.number, None)

    def take(self) -> tuple[Piece, str] | None:
        """Return a piece to do and its URL, once there is one; None: all is over."""
        with self._changed:
            while True:
                open_ = [one for one in self._pieces if self._is_open(one)]
                if self._error is not None or not open_:
                    return None
                for piece in open_:
                    url = self._url(piece.number)
                    if url and self._may_begin(piece.number):
                        self._in_hand.add(piece.number)
                        return piece, url
                self._changed.wait(0.1)

    def put_back(self, piece: Piece) -> None:
        """Let go of a piece: it is done, or to be tried again."""
        with self._changed:
            self._in_hand.discard(piece.number)
            self._busy = time.monotonic()
            self._changed.notify_all()

    def stumble(self, piece: Piece, fault: LineFault) -> None:
        """Note a fault of the line: the piece is tried again, or all is given up."""
        number = piece.number
        with self._changed:
            self._all_faults += 1
            if isinstance(fault, Refusal):
                self._urls.pop(number, None)
                self._refusals[number] = self._refusals.get(number, 0) + 1
                given_up = self._refusals[number] >= _REFUSALS
            else:
                self._faults[number] = self._faults.get(number, 0) + 1
                tries = self._faults[number]
                given_up = fault.lasting or not _RETRY.allows(tries)
                wait = _RETRY.delay(tries, str(number))
                self._not_before[number] = time.monotonic() + wait
        if given_up:
            self.fail(_gave_up(piece, fault))

    def spoil(self, name: str, error: HansaError) -> None:
        """Note that the objects of a file are missing or damaged; others go on."""
        with self._changed:
            self._damaged[name] = error
            self._changed.notify_all()
        self.set_have(name, whole=False)

    def fail(self, error: HansaError) -> None:
        """Note what ends all of it; only the first one counts."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def finish(self) -> None:
        """Note that nothing more will be done."""
        with self._changed:
            self._finished = True

    @property
    def sound(self) -> bool:
        """Tell whether nothing has failed."""
        with self._changed:
            return self._error is None and not self._damaged

    # --- under the lock ---------------------------------------------------------------

    def _is_whole(self, piece: Piece) -> bool:
        return self._have[piece.number] >= piece.length

    def _is_open(self, piece: Piece) -> bool:
        return not self._is_whole(piece) and piece.name not in self._damaged

    def _url(self, number: int) -> str | None:
        url, until = self._urls.get(number, ("", 0.0))
        return url if until > time.time() else None

    def _may_begin(self, number: int) -> bool:
        ready = self._not_before.get(number, 0.0) <= time.monotonic()
        return ready and number not in self._in_hand

    def _wants(self) -> list[int]:
        """Return the next pieces that no URL is good for."""
        ahead = [one.number for one in self._pieces if self._is_open(one)][:URLS]
        return [
            number
            for number in ahead
            if number not in self._in_hand and self._url(number) is None
        ]

    def _ready(self) -> int:
        for piece in self._pieces:
            if not self._is_whole(piece):
                return piece.number
        return len(self._pieces)

    def _ended(self, status: Status, error: HansaError | None) -> Status:
        fields = {"state": DONE} if error is None else failed(error, self._damaged)
        told = {name: getattr(status, name) for name in Status.__slots__}
        return Status(**{**told, **fields, "wants": ()})


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
