"""The facility's only entry point: one request in, one reply out, nothing resident."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import hansa
from hansa.core import plugins
from hansa.core.errors import FacilityError, HansaError, PolicyError, StoreError
from hansa.core.ids import job_key, job_name
from hansa.mailbox.files import fsync_dir, storage_full, write_json, write_text
from hansa.mailbox.paths import Mailbox
from hansa.scheduler.base import Scheduler
from hansa.site import health, policy, prepare, rpc, tidying
from hansa.site.batch import Batch, Run, run_command
from hansa.site.reach import alone, inside, small_json, tail
from hansa.site.records import Records
from hansa.spec.site import SiteSpec

log = logging.getLogger(__name__)

ORDER_LIMIT = 256 * 1024
"""An order whose JSON is larger is refused."""

_Handler = Callable[["Agent", Any], dict[str, Any]]


class Agent:
    """Answers the requests of `hansa.site.rpc` for one facility.

    Args:
        site: The facility's own file, loaded.
        run: Runs the batch system's commands; another one for tests.
    """

    def __init__(self, site: SiteSpec, *, run: Run = run_command) -> None:
        self._site = site
        self._run = run

    @cached_property
    def _scheduler(self) -> Scheduler:
        choice = self._site.scheduler
        kind = plugins.find(plugins.SCHEDULERS, choice.type)
        options = kind.Options.model_validate(choice.options)
        scheduler: Scheduler = kind(options, self._site.mailbox)
        return scheduler

    @property
    def _batch(self) -> Batch:
        return Batch(self._scheduler, self._run)

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a request; every error becomes a reply too."""
        try:
            ask = rpc.parse_request(request)
            return rpc.reply(_HANDLERS[type(ask)](self, ask))
        except StoreError as error:
            # Under its own class it would read as damage to the server's own store.
            return rpc.refusal(FacilityError.of(error))
        except HansaError as error:
            return rpc.refusal(error)
        except OSError as error:
            return rpc.refusal(_broken(self._site.name, error))
        except Exception as error:  # a reply in any case: the server must not guess
            log.exception("a request failed")
            text = f"The site agent of {self._site.name} failed: {error!r}."
            return rpc.refusal(FacilityError(text, hint="This is a bug in Hansa."))

    # --- the operations ---------------------------------------------------------------

    def _probe(self, ask: rpc.Probe) -> dict[str, Any]:
        del ask
        site = self._site
        found = health.problems(site, self._ask_scheduler)
        return {
            "facility": site.name,
            "hansa": hansa.__version__,
            "scheduler": site.scheduler.type,
            "mailbox": str(site.mailbox),
            "free_bytes": health.free_bytes(site.mailbox),
            "clock": time.time(),
            "tasks": sorted(site.tasks),
            "problems": [{"what": what, "hint": hint} for what, hint in found],
        }

    def _submit(self, ask: rpc.Submit) -> dict[str, Any]:
        policy.check(self._site, ask)
        _check_order(self._site, ask.order)
        spec = prepare.job_spec(self._site, ask)
        script = self._scheduler.render(spec)
        if ask.dry_run:
            return {"job": None, "name": spec.name, "found": False, "script": script}
        mailbox = self._mailbox(ask.run)
        inside(mailbox.path, spec.directory)
        inside(mailbox.path, mailbox.orders)
        lock = mailbox.orders / f".{ask.order.assignment}.lock"
        with storage_full(mailbox.path), alone(lock):
            job, found = self._submit_once(mailbox, ask, script)
        return {"job": job, "name": spec.name, "found": found}

    def _poll(self, ask: rpc.Poll) -> dict[str, Any]:
        if not ask.jobs:
            return {"jobs": {}}
        records = self._records(self._mailbox(ask.run), ask.jobs)
        return {"jobs": {key: records.report(key) for key in ask.jobs}}

    def _cancel(self, ask: rpc.Cancel) -> dict[str, Any]:
        if not ask.jobs:
            return {"cancelled": []}
        records = self._records(self._mailbox(ask.run), ask.jobs)
        found = {key: records.status(key) for key in ask.jobs}
        alive = {
            key: job.id for key, job in found.items() if job and not job.state.final
        }
        self._batch.cancel(list(alive.values()))
        return {"cancelled": list(alive)}

    def _read(self, ask: rpc.Read) -> dict[str, Any]:
        mailbox = self._mailbox(ask.run)
        return {"text": tail(mailbox.path, ask.path, ask.tail_bytes)}

    def _tidy(self, ask: rpc.Tidy) -> dict[str, Any]:
        mailbox = self._mailbox(ask.run)
        done = {
            "removed": tidying.versions(mailbox, ask.keep, self._records),
            "collected": tidying.collected(mailbox, ask.collected, self._records),
        }
        tidying.leftovers(mailbox)
        return done

    # --- their parts ------------------------------------------------------------------

    def _mailbox(self, run: str) -> Mailbox:
        mailbox = Mailbox(self._site.mailbox, run)
        inside(self._site.mailbox, mailbox.path)
        return mailbox

    def _ask_scheduler(self) -> object:
        return self._batch.jobs()

    def _records(self, mailbox: Mailbox, keys: Iterable[str] = ()) -> Records:
        names = [job_name(mailbox.run, *rpc.split_job(key)) for key in keys]
        return Records(mailbox, self._batch.jobs(names or None))

    def _submit_once(
        self, mailbox: Mailbox, ask: rpc.Submit, script: str
    ) -> tuple[str, bool]:
        """Return the job's id, and whether it had been submitted before."""
        self._write_order(mailbox, ask.order)
        records = self._records(mailbox)
        files = mailbox.job(ask.order.assignment, ask.number)
        known = records.submitted(job_key(ask.order.assignment, ask.number))
        if known is None:
            policy.check_queue(self._site, ask.run, records.names_alive())
            if ask.number > 1:
                _set_aside(mailbox.update(ask.order.assignment), ask.number)
            write_json(files.job, prepare.job_json(self._site, ask))
            write_text(files.script, script, mode=0o755)
        job = known or self._batch.submit(files.script)
        if not files.submitted.exists():
            write_json(files.submitted, {"schema": rpc.SCHEMA, "job": job})
        return job, known is not None

    def _write_order(self, mailbox: Mailbox, order: rpc.Order) -> None:
        path = mailbox.order(order.assignment)
        new, old = prepare.order_json(order), small_json(mailbox.path, path)
        if old is None:
            write_json(path, new)
        elif old != new:
            raise PolicyError(
                f"{self._site.name} has another order {order.assignment} of the run "
                f"{order.run} already; orders never change.",
                hint="Use another run id, or remove the old run's mailbox there.",
            )


_HANDLERS: dict[type, _Handler] = {
    rpc.Probe: Agent._probe,
    rpc.Submit: Agent._submit,
    rpc.Poll: Agent._poll,
    rpc.Cancel: Agent._cancel,
    rpc.Read: Agent._read,
    rpc.Tidy: Agent._tidy,
}


def _check_order(site: SiteSpec, order: rpc.Order) -> None:
    size = len(json.dumps(prepare.order_json(order)))
    if size > ORDER_LIMIT:
        raise PolicyError(
            f"The order {order.assignment} is too large: {size} bytes.",
            hint=f"{site.name} takes {ORDER_LIMIT} at most.",
        )
    known = plugins.names(plugins.TRAINERS)
    if order.model.trainer not in known:
        raise PolicyError(
            f"{site.name} has no trainer {order.model.trainer!r}.",
            hint=f"Installed there: {', '.join(known)}.",
        )


def _broken(site: str, error: OSError) -> HansaError:
    where = f" ({error.filename})" if error.filename else ""
    return FacilityError(
        f"The site agent of {site} can't work: {error.strerror or error}{where}.",
        hint="Can this user read and write the mailbox?",
    )


def _set_aside(update: Path, number: int) -> None:
    """Make room for job `number`: what an earlier job delivered was not accepted."""
    if update.is_dir():
        update.replace(update.with_name(f".refused-{update.name}.{number}"))
        fsync_dir(update.parent)
