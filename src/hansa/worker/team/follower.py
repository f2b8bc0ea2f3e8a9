"""A rank above 0: it makes the calls that rank 0 makes, on its own trainer and data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hansa.core.errors import HansaError, WorkerError
from hansa.worker.base import resolve
from hansa.worker.job import Job, trainer_plugin
from hansa.worker.loading import Work
from hansa.worker.team.crew import Crew, gone_wrong
from hansa.worker.team.leader import UNABLE_S

log = logging.getLogger(__name__)

Order = Mapping[str, Any]
Answer = Mapping[str, Any]


class Follower:
    """Does what rank 0 says until that is over.

    Args:
        crew: This rank and the others.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._now: Work | None = None
        self._unable: HansaError | None = None
        self._calls: dict[str, Callable[[Order], Answer | None]] = {
            "begin": self._begin,
            "read": self._read,
            "load": self._load,
            "restore": self._restore,
            "step": self._step,
            "evaluate": self._evaluate,
            "suspects": self._suspects,
            "save": self._save,
            "tensors": self._tensors,
            "report": self._report,
            "drop": self._drop,
        }

    def run(self) -> None:
        """Follow until rank 0 says that it is over.

        Raises:
            HansaError: The team has ended before.
            Exception: A call has failed on this rank.
        """
        while (order := self._next()) is not None:
            answer = self._calls[order["do"]](order)
            if answer is not None:
                self._crew.answer(order, answer)
        log.info("All is done; this rank ends.")

    def _next(self) -> Order | None:
        if self._unable is None:
            return self._crew.next_order()
        # Rank 0 may wait in a collective for this rank, which has left it.
        order = self._crew.next_order(UNABLE_S, self._unable)
        self._unable = None
        return order

    @property
    def _work(self) -> Work:
        if self._now is None:
            raise gone_wrong("there is no order to work on")
        return self._now

    def _begin(self, order: Order) -> None:
        job = Job.model_validate(order["job"])
        self._crew.joined(order["port"])
        with self._crew.together(slow=True):  # while rank 0 reads the data
            resolve(trainer_plugin(job.order.model.trainer).target)
        self._now = Work(job, self._crew.team)
        log.info("Rank %d works on %s.", self._crew.team.rank, job.key)

    def _read(self, order: Order) -> None:
        with self._crew.together(slow=True):
            self._work.read(train=order["train"], test=order["test"])

    def _load(self, order: Order) -> None:
        with self._crew.together(slow=True):
            self._work.load(Path(order["version"]))

    def _restore(self, order: Order) -> Answer:
        directory, only = Path(order["directory"]), bool(order["optimizer_only"])
        return self._tried(
            lambda: self._work.restore(directory, optimizer_only=only), WorkerError
        )

    def _step(self, order: Order) -> None:
        with self._crew.together():
            self._work.step(order["index"])

    def _evaluate(self, order: Order) -> Answer:
        with self._crew.together():
            return {"sums": self._work.share(order["first"], order["count"])}

    def _suspects(self, order: Order) -> Answer:
        with self._crew.together():
            return {"suspects": self._work.own_suspects(order["index"])}

    def _save(self, order: Order) -> Answer:
        directory = Path(order["directory"])
        return self._tried(lambda: self._work.save(directory), HansaError)

    def _tried(self, call: Callable[[], None], kind: type[HansaError]) -> Answer:
        """Make a call that may fail on some ranks, and say whether it has."""
        try:
            with self._crew.together(slow=True):
                call()
        except kind as error:
            self._crew.watch.check()
            log.warning("This rank can't use or write the checkpoint: %s", error)
            self._unable = error
            return {"error": error.to_json()}
        return {"error": None}

    def _tensors(self, order: Order) -> None:
        del order
        with self._crew.together(slow=True):
            for _ in self._work.tensors():
                pass

    def _report(self, order: Order) -> None:
        del order
        with self._crew.together():
            self._work.report()

    def _drop(self, order: Order) -> None:
        del order
        self._work.drop()
