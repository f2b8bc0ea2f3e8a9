"""The optimizer's state of a facility, kept from one round to the next.

::

    <root>/<run>/optimizer/00000120/    the trainer's files, as in a checkpoint

Named after the steps that the facility had done by then. It never travels. An order
takes up the newest that is not from beyond its own beginning, so doing an order again
starts as it did before. The moments are those of the facility's own last steps; the
weights are the new version's.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from hansa.core.errors import HansaError
from hansa.mailbox.paths import Mailbox
from hansa.worker import checkpoint
from hansa.worker.checkpoint import Progress, Savable
from hansa.worker.job import Job
from hansa.worker.loading import steps_before

log = logging.getLogger(__name__)


def is_asked(job: Job) -> bool:
    """Tell whether the facility keeps its optimizer's state."""
    return job.order.kind == "train" and job.order.work.get("keep_optimizer") is True


def keep(mailbox: Mailbox, job: Job, progress: Progress, work: Savable) -> None:
    """Keep the state at the end of an order, and that of the order before.

    What can't be kept is logged: the update counts more.
    """
    first, folder = steps_before(job), _folder(mailbox)
    done = progress.model_copy(update={"step": first + progress.step})
    try:
        for path in checkpoint.steps(folder):
            if int(path.name) > first:  # of an order whose update did not count
                shutil.rmtree(path)
        checkpoint.save(folder, done, work)
    except (HansaError, OSError) as error:
        log.warning("The optimizer's state is not kept: %s", error)


def newest(mailbox: Mailbox, job: Job) -> Path | None:
    """Return the state that an order goes on from; None if there is none."""
    if not is_asked(job):
        return None
    first = steps_before(job)
    for path in checkpoint.steps(_folder(mailbox)):
        if int(path.name) > first:
            continue
        try:
            checkpoint.load(path)
        except (HansaError, OSError) as error:
            log.warning("The optimizer's state %s is left out: %s", path, error)
        else:
            log.info("Going on with the optimizer's state %s.", path)
            return path
    return None


def _folder(mailbox: Mailbox) -> Path:
    return mailbox.path / "optimizer"
