"""An update on its thread: no failure of the writer lets the trainer wait for ever."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from worker_place import Place, read_job

from hansa.core.errors import StoreError
from hansa.worker import delivery
from hansa.worker.checkpoint import Progress
from hansa.worker.delivery import Delivery, Result
from hansa.worker.pipe import Pipe


def test_a_base_that_has_gone_is_told_at_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "Pipe", lambda: Pipe(bound=10))
    order, progress = read_job(place.job()).order, Progress(base=7, step=1)
    failures: list[Exception] = []

    def deliver() -> None:
        with Delivery(place.mailbox, order, progress) as update:
            update.send((name, np.ones(9)) for name in "abc")
            try:
                update.finish(Result(progress))
            except StoreError as error:
                failures.append(error)

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert "7" in str(failures[0])
    assert not place.mailbox.updates.exists()
