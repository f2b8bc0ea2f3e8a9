"""The processes of a team at work: rank 0 gives orders, the others follow.

Words on the connections of `hansa.worker.team.watch`, beside its own::

    {"order": 7, "do": "step", ...}     rank 0 to all: the same call, on every rank
    {"answer": 7, ...}                  from each of them, to orders that want one
    {"bye": true}                       the end, answered with the same
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from hansa.core.errors import HansaError, WorkerError
from hansa.worker.job import Job
from hansa.worker.team import Team
from hansa.worker.team.watch import Peer, Watch, leave

BYE_S: Final = 60.0


class Crew:
    """This rank's place among all.

    Args:
        team: Who this is.
        watch: The connections.
        peers: All ranks by number.
        host: Where the process group's store listens (rank 0; empty: everywhere) or is
            reached.

    Attributes:
        team: Who this is; `local` is the number of its GPU once there is a process
            group.
    """

    def __init__(
        self, team: Team, watch: Watch, peers: Mapping[int, Peer], host: str
    ) -> None:
        self.team = team
        self.watch = watch
        self._peers = peers
        self._host = host
        self._number = 0
        self._grouped = False
        self._store: object = None
        self._answers: dict[int, dict[int, dict[str, Any]]] = {}

    # --- rank 0 -------------------------------------------------------------------

    def tell(self, do: str, fields: Mapping[str, Any] | None = None) -> int:
        """Give an order to all others; return its number.

        Raises:
            HansaError: The team has ended.
        """
        self.watch.check()
        self._number += 1
        self.watch.post({"order": self._number, "do": do, **(fields or {})})
        return self._number

    def answers(self, number: int, within: float | None = None) -> list[dict[str, Any]]:
        """Wait for what the others say to an order; in the order of the ranks.

        Args:
            number: Of the order.
            within: Seconds; None: as long as it takes.

        Raises:
            HansaError: The team has ended, or an answer did not come in time.
        """
        end = None if within is None else time.monotonic() + within
        found = self._answers.setdefault(number, {})
        while len(found) < self.team.world - 1:
            left = None if end is None else max(end - time.monotonic(), 0.0)
            entry = self.watch.take(left)
            if entry is None:
                silent = min({*range(1, self.team.world)} - found.keys())
                raise self._peers[silent].lost("does not answer.")
            rank, word = entry
            self._answers.setdefault(int(word["answer"]), {})[rank] = word
        del self._answers[number]
        return [found[rank] for rank in sorted(found)]

    def begin(self, job: Job) -> None:
        """Let all ranks make the process group, if there is none, and take up a job."""
        told = {"job": job.model_dump(mode="json"), "port": None}
        if self._grouped:
            self.tell("begin", told)
            return
        # The others may knock before this rank has imported torch.
        server = socket.create_server((self._host, 0), backlog=self.team.world)
        port = int(server.getsockname()[1])
        self.tell("begin", {**told, "port": port})
        self._group(port, server)

    def end(self) -> None:
        """Let all others end, and wait until they have heard it."""
        self.watch.post({"bye": True})
        self._ungroup()
        waiting = self.team.world - 1
        with suppress(HansaError):  # one has died, but all work is done
            while waiting and (entry := self.watch.take(BYE_S)) is not None:
                waiting -= "bye" in entry[1]
        self.watch.close()

    # --- the others ---------------------------------------------------------------

    def next_order(
        self, within: float | None = None, failure: HansaError | None = None
    ) -> dict[str, Any] | None:
        """Return the next order; None at the end. Waiting for it costs nothing.

        Args:
            within: Seconds; None: as long as it takes.
            failure: What to raise if none comes in time.

        Raises:
            HansaError: The team has ended.
        """
        entry = self.watch.take(within)
        if entry is None:
            raise failure or gone_wrong("no order came")
        if "bye" not in entry[1]:
            return entry[1]
        self._ungroup()
        self.watch.close({"bye": True})
        return None

    def joined(self, port: int | None) -> None:
        """Join the process group that rank 0 makes; no port: there is one."""
        if port is not None:
            self._group(port)

    def answer(self, order: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        """Say something to an order."""
        self.watch.post({"answer": order["order"], **fields})

    # --- all ----------------------------------------------------------------------

    @contextmanager
    def together(self, *, slow: bool = False) -> Iterator[None]:
        """Hold a call that all ranks make; say why the team has ended if it fails.

        Args:
            slow: It may import libraries or write files.

        Raises:
            HansaError: What the call has raised because another rank was lost.
        """
        try:
            if slow:
                with self.watch.slow():
                    yield
            else:
                yield
        except Exception as error:
            loss = self.watch.reason(error)
            if loss is None or loss is error:
                raise
            raise loss from error

    @property
    def broken(self) -> bool:
        """Whether the team has ended before its time."""
        return self.watch.loss is not None

    def fail(self, failure: HansaError) -> None:
        """Tell the others that this rank ends."""
        self.watch.fail(failure)

    def leave(self, code: int) -> None:
        """End this process, as what is left of the process group may hang."""
        leave(code)

    def _group(self, port: int, server: socket.socket | None = None) -> None:
        self._grouped = True
        with self.together(slow=True):
            from hansa.worker.team import group  # noqa: PLC0415 - imports torch

            # Kept to the end: rank 0's is where the others look.
            self._store = group.make_store(self._host, port, server)
            local = group.make_group(self._store, self.team)
        self.team = replace(self.team, local=local)

    def _ungroup(self) -> None:
        if self._grouped:
            from hansa.worker.team import group  # noqa: PLC0415 - imports torch

            group.end_group()


def gone_wrong(what: str) -> WorkerError:
    """Return the error of ranks that do not do the same."""
    return WorkerError(
        f"The ranks of this job do not do the same: {what}.",
        hint="Please report this as an error of Hansa.",
    )
