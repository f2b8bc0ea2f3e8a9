"""Every rank of a team sees at once when another one dies, and soon when it hangs.

::

    rank 0   <- one connection each ->   ranks 1, 2, ...
    words:      a JSON object a line, both ways; see `hansa.worker.team.crew`
    beats:      every two seconds, both ways, from a thread

A process that dies closes its connection, whoever killed it. A node that is gone lets
TCP give up after `QUIET_S`. A process that is stopped sends no beats. Rank 0 tells all
others what it saw, so all give the same reason. Collectives that wait for the lost rank
do not matter: who has not ended `GRACE_S` after that is ended by the thread.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from hansa.core.errors import HansaError, WorkerError, from_json

log = logging.getLogger(__name__)

BEAT_S: Final = 2.0
QUIET_S: Final = 15.0
"""A rank that was not heard of for so long is lost."""

SLOW_S: Final = 300.0
"""The same, while a rank imports, loads or saves: libraries may hold Python's lock."""

GRACE_S: Final = 5.0
"""So long a process may still write files and words when a rank is lost."""

SEND_S: Final = 5.0
LONGEST_WORD: Final = 1 << 22

Word = Mapping[str, Any]
Number = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Peer:
    """A rank, as people look for it.

    Attributes:
        rank: Its number.
        host: Its node.
        log: Path of its log.
    """

    rank: int
    host: str
    log: str

    def lost(self, what: str) -> WorkerError:
        """Return the error that ends all others; another job may do the work.

        Args:
            what: The rest of a sentence that begins with the rank and its node.
        """
        return WorkerError(
            f"Rank {self.rank} on {self.host} {what} Its log is {self.log}.",
            hint="The job goes on from its last checkpoint when it is tried again. Was "
            "there enough memory? If this happens on that node again, tell its "
            "operators.",
            transient=True,
        )

    def failed(self, failure: HansaError) -> HansaError:
        """Return the error that ends all others when this rank has failed."""
        told = failure.to_json()
        what = failure.message.rstrip(".")
        message = (
            f"Rank {self.rank} on {self.host} failed: {what}. Its log is {self.log}."
        )
        return from_json({**told, "message": message})


class Line:
    """A connection to another rank.

    Args:
        sock: Connected; this takes it over.

    Attributes:
        heard: When the last word came, by `time.monotonic`.
        quiet_s: So long the other side may be silent.
        early: Words that came before the watch began.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(SEND_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # beats that nobody acknowledges
            milliseconds = round(QUIET_S * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self.sock = sock
        self.heard = time.monotonic()
        self.quiet_s = QUIET_S
        self.early: list[dict[str, Any]] = []
        self._buffer = bytearray()
        self._lock = threading.Lock()

    def send(self, word: Word) -> None:
        """Send a word; whoever can't take it is found by the watch on this line."""
        data = json.dumps(word).encode() + b"\n"
        try:
            with self._lock:
                self.sock.sendall(data)
        except TimeoutError:  # half of the word may be out: nothing can follow it
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("A word was not sent: %s", error)

    def receive(self) -> list[dict[str, Any]]:
        """Return the words that are there, once there is something to read.

        Raises:
            OSError: The connection has ended, or what comes is none of Hansa's.
        """
        chunk = self.sock.recv(1 << 16)
        if not chunk:
            raise ConnectionResetError("the connection has ended")
        self.heard = time.monotonic()
        self._buffer += chunk
        if len(self._buffer) > LONGEST_WORD:
            raise ConnectionError("a word is too long")
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        return [_object(bytes(line)) for line in lines]

    def wait_for(self, key: str, within: float) -> dict[str, Any]:
        """Return the first word with a key; what follows it stays in `early`.

        Raises:
            OSError: It does not come.
        """
        end = time.monotonic() + within
        try:
            while True:
                while self.early:
                    word = self.early.pop(0)
                    if key in word:
                        return word
                self.sock.settimeout(max(end - time.monotonic(), 0.01))
                self.early += self.receive()
        finally:
            self.sock.settimeout(SEND_S)

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def _object(line: bytes) -> dict[str, Any]:
    try:
        word = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConnectionError("what came is not JSON") from error
    if not isinstance(word, dict):
        raise ConnectionError("what came is no JSON object")
    return word


class Watch:
    """The thread that listens to the other ranks.

    Args:
        me: This rank.
        peers: All ranks by number.
        end: Ends the process, when it does not end by itself.

    Attributes:
        loss: Why the team is at an end, or None.
        inbox: Words that came, each with its sender; None when the team has ended.
        on_loss: Called from the thread with `loss`, at once and before `end`.
    """

    def __init__(
        self, me: int, peers: Mapping[int, Peer], end: Callable[[], None] | None = None
    ) -> None:
        self.me = me
        self.loss: HansaError | None = None
        self.inbox: queue.SimpleQueue[tuple[int, dict[str, Any]] | None] = (
            queue.SimpleQueue()
        )
        self.on_loss: Callable[[HansaError], None] = no_loss
        self._peers = peers
        self._end = end or _leave_now
        self._lines: dict[int, Line] = {}
        self._selector = selectors.DefaultSelector()
        self._quiet_s = QUIET_S
        self._lost_at = 0.0
        self._next_beat = self._ticked = time.monotonic()
        self._over = threading.Event()
        self._waker, self._wake = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    # --- the main thread's side ---------------------------------------------------

    def add(self, rank: int, line: Line) -> None:
        """Take over the connection to a rank; all of them before `start`."""
        self._lines[rank] = line
        self._selector.register(line.sock, selectors.EVENT_READ, rank)

    @property
    def ranks(self) -> list[int]:
        """The ranks that are connected to this one."""
        return sorted(self._lines)

    def start(self) -> None:
        """Let the thread begin."""
        now = time.monotonic()
        for line in self._lines.values():
            line.heard = now  # the first may have come minutes before the last
        self._thread.start()

    def post(self, word: Word) -> None:
        """Send a word on every line."""
        for line in list(self._lines.values()):
            line.send(word)

    def check(self) -> None:
        """Raise what ends the team, if there is something."""
        if self.loss is not None:
            raise self.loss

    def take(self, within: float | None = None) -> tuple[int, dict[str, Any]] | None:
        """Return the next word and who said it; None: none came in time.

        Waiting costs nothing and has no end of its own.

        Args:
            within: Seconds; None: for ever.

        Raises:
            HansaError: The team has ended.
        """
        self.check()
        try:
            found = self.inbox.get(timeout=within)
        except queue.Empty:
            return None
        if found is None:
            self.check()
        return found

    def reason(self, error: Exception) -> HansaError | None:
        """Return why the team is at an end; waits a moment, as it may be seen soon.

        Args:
            error: What a call has raised that other ranks take part in.
        """
        if not isinstance(error, HansaError):
            end = time.monotonic() + GRACE_S
            while self.loss is None and time.monotonic() < end:
                time.sleep(0.01)
        return self.loss

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Tell the others that this rank may be silent for longer meanwhile."""
        self._beat(SLOW_S)
        try:
            yield
        finally:
            self._beat(QUIET_S)

    def fail(self, failure: HansaError) -> None:
        """Tell all others that this rank ends, unless they know that all end."""
        if self.loss is not None:
            return
        told = failure.to_json()
        if self.me:
            self.post({"failed": told})
            end = time.monotonic() + GRACE_S
            while self.loss is None and time.monotonic() < end:
                time.sleep(0.01)
        else:
            self.post({"lost": self._peers[0].failed(failure).to_json()})

    def lose(self, error: HansaError) -> None:
        """End the team: tell all others, and whoever waits here for a word."""
        if self.loss is not None:
            return
        self._lost_at = time.monotonic()
        self.loss = error
        log.error("The ranks end: %s %s", error.message, error.hint or "")
        if self.me == 0:
            self.post({"lost": error.to_json()})
        self.on_loss(error)
        self.inbox.put(None)

    def close(self, last: Word | None = None) -> None:
        """End the thread, then all connections.

        Args:
            last: A word to say in between; nobody listens to what comes back.
        """
        self._over.set()
        self._waker.close()
        if self._thread.ident is not None:
            self._thread.join()
        if last is not None:
            self.post(last)
        for line in self._lines.values():
            line.close()
        self._selector.close()
        self._wake.close()

    # --- the thread's side --------------------------------------------------------

    def _run(self) -> None:
        try:
            self._listen()
        except Exception:
            log.exception("This process can't watch the others, and ends.")
            self._end()

    def _listen(self) -> None:
        for rank, line in self._lines.items():
            for word in line.early:
                self._hear(rank, word)
        while not self._over.is_set():
            pause = max(self._next_beat - time.monotonic(), 0.0)
            for key, _ in self._selector.select(pause):
                if key.data is not None:
                    self._read(key.data)
            if time.monotonic() >= self._next_beat:
                self._tick()

    def _read(self, rank: int) -> None:
        line = self._lines[rank]
        try:
            words = line.receive()
        except OSError as error:
            self._gone(rank, error)
            return
        for word in words:
            self._hear(rank, word)

    def _gone(self, rank: int, error: OSError) -> None:
        self._selector.unregister(self._lines[rank].sock)
        self._lines.pop(rank).close()
        told = "" if isinstance(error, ConnectionResetError) else f" ({error})"
        self.lose(self._peers[rank].lost(f"has ended without a word{told}."))

    def _hear(self, rank: int, word: dict[str, Any]) -> None:
        if "beat" in word:
            self._lines[rank].quiet_s = float(word["beat"])
        elif "lost" in word:
            self.lose(from_json(word["lost"]))
        elif "failed" in word:
            self.lose(self._peers[rank].failed(from_json(word["failed"])))
        elif "bye" in word and self.me == 0:
            self._selector.unregister(self._lines[rank].sock)
            self._lines.pop(rank).close()
            self.inbox.put((rank, word))
        else:
            self.inbox.put((rank, word))

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._ticked > QUIET_S / 2:
            # It was this process that slept: all may have, as in a suspended job.
            for line in self._lines.values():
                line.heard = now
        self._ticked, self._next_beat = now, now + BEAT_S
        self.post({"beat": self._quiet_s})
        for rank, line in self._lines.items():
            if now - line.heard > line.quiet_s:
                what = f"was not heard of for {line.quiet_s:.0f} s."
                self.lose(self._peers[rank].lost(what))
                break
        if self.loss is not None and now - self._lost_at > GRACE_S:
            log.error("This process is ended: it still waits for the lost rank.")
            self.on_loss(self.loss)
            self._end()

    def _beat(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self.post({"beat": quiet_s})


def no_loss(loss: HansaError) -> None:
    """Do nothing about a loss: no order is worked on."""
    del loss


def _leave_now() -> None:
    """End the process, whatever its other threads wait for."""
    leave(1)


def leave(code: int) -> None:
    """End the process without taking apart what may hang, as process groups do."""
    logging.shutdown()
    os._exit(code)
