"""The facility's only entry point: one request in, one reply out, nothing resident."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import hansa
from hansa.core import plugins
from hansa.core.errors import FacilityError, HansaError, StoreError
from hansa.core.ids import job_name
from hansa.mailbox.paths import Mailbox
from hansa.mailbox.state import State
from hansa.scheduler.base import Scheduler
from hansa.site import exchange, health, rpc, submission, tidying, words, work
from hansa.site.batch import Batch, Run, run_in
from hansa.site.exchange_request import Exchange, Reach
from hansa.site.order import split_job
from hansa.site.reach import alone, inside, tail
from hansa.site.records import Files, Records
from hansa.site.submission import Desk, Submission
from hansa.site.watch import Watch
from hansa.spec.site import SiteSpec

log = logging.getLogger(__name__)

_Handler = Callable[["Agent", Any], dict[str, Any]]


class Agent:
    """Answers the requests of `hansa.site.rpc` for one facility.

    Args:
        site: The facility's own file, loaded.
        run: Runs the batch system's commands, by default in the folder `state`;
            another one for tests.
        ask_batch: Whether a dry run asks the batch system if it would accept the
            script; not from another machine than the facility's.
    """

    def __init__(
        self, site: SiteSpec, *, run: Run | None = None, ask_batch: bool = True
    ) -> None:
        self._site = site
        self._run = run or run_in(site.state)
        self._ask_batch = ask_batch

    @cached_property
    def _scheduler(self) -> Scheduler:
        choice = self._site.scheduler
        kind = plugins.find(plugins.SCHEDULERS, choice.type)
        options = kind.Options.model_validate(choice.options)
        scheduler: Scheduler = kind(options, self._site.state)
        return scheduler

    @property
    def _batch(self) -> Batch:
        return Batch(self._scheduler, self._run)

    @property
    def _watch(self) -> Watch:
        batch = self._batch
        return Watch(self._site.state, self._site.poll.first, batch.jobs)

    @cached_property
    def _environment(self) -> health.Report:
        try:
            shell = health.shell_of(self._scheduler, self._site.state)
        except HansaError:  # the look at the scheduler tells of it
            shell = health.SHELL
        return health.environment(self._site, shell)

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
        found = health.look(site, self._ask_scheduler).and_also(self._environment)
        return {
            "facility": site.name,
            "hansa": hansa.__version__,
            "scheduler": site.scheduler.type,
            "mailbox": str(site.mailbox),
            "free_bytes": health.free_bytes(site.mailbox),
            "clock": time.time(),
            "tasks": sorted(site.tasks),
            "node": site.node.model_dump(mode="json"),
            "limits": site.limits.model_dump(mode="json"),
            "pace": self._pace(),
            "problems": [{"what": what, "hint": hint} for what, hint in found.problems],
            "notes": list(found.notes),
        }

    def _submit(self, ask: rpc.Submit) -> dict[str, Any]:
        submission.check(self._site, ask)
        desk = self._desk()
        if ask.dry_run:
            return submission.preview(desk, ask, ask_batch=self._ask_batch)
        return Submission(desk, self._files(ask.run), ask).carry_out()

    def _place(self, ask: rpc.Place) -> dict[str, Any]:
        submission.check(self._site, ask)
        found = Submission(self._desk(), self._files(ask.run), ask).carry_out()
        del found["host"]
        return found

    def _tell(self, ask: rpc.Tell) -> dict[str, Any]:
        files = self._files(ask.run)
        if not ask.jobs:
            return {"told": []}
        if ask.word == "begin":
            return {"told": words.begin(files, ask.jobs)}
        with _not_submitting(files, ask.jobs):
            records = self._look(files, ask.jobs)
            return {"told": words.leave(records, self._batch, ask.jobs)}

    def _poll(self, ask: rpc.Poll) -> dict[str, Any]:
        pace = self._pace()
        if not ask.jobs:
            return {"jobs": {}, "pace": pace}
        files = self._files(ask.run)
        ids, names = _who(files, ask.jobs)
        records = Records(files, self._watch.recent(ids, names))
        return {"jobs": {key: records.report(key) for key in ask.jobs}, "pace": pace}

    def _cancel(self, ask: rpc.Cancel) -> dict[str, Any]:
        if not ask.jobs:
            return {"cancelled": []}
        files = self._files(ask.run)
        if ask.late:
            submission.own_folder(files.state.root)
            files.state.path.mkdir(mode=0o700, exist_ok=True)
        with _not_submitting(files, ask.jobs):
            records = self._look(files, ask.jobs)
            cancelled = words.cancel(records, self._batch, ask.jobs)
            if ask.late:
                words.refuse(records, ask.jobs, ask.late)
            return {"cancelled": cancelled}

    def _read(self, ask: rpc.Read) -> dict[str, Any]:
        mailbox = self._files(ask.run).mailbox
        return {"text": tail(mailbox.path, ask.path, ask.tail_bytes)}

    def _tidy(self, ask: rpc.Tidy) -> dict[str, Any]:
        files = self._files(ask.run)
        done = {
            "removed": tidying.versions(
                files.mailbox, ask.keep, lambda: self._look(files)
            ),
            "states": tidying.states(
                files.mailbox, ask.keep, lambda: self._look(files)
            ),
            "collected": tidying.collected(
                files, ask.collected, lambda: self._look(files)
            ),
        }
        tidying.leftovers(files.mailbox)
        return done

    def _work(self, ask: rpc.Work) -> dict[str, Any]:
        return work.carry_out(self._scheduler, self._files(ask.run), ask.job)

    def _reach(self, ask: Reach) -> dict[str, Any]:
        return exchange.reach(self._site, ask)

    def _exchange(self, ask: Exchange) -> dict[str, Any]:
        return exchange.answer(self._site, ask)

    # --- their parts ------------------------------------------------------------------

    def _desk(self) -> Desk:
        return Desk(self._site, self._scheduler, self._batch, self._watch)

    def _files(self, run: str) -> Files:
        mailbox = Mailbox(self._site.mailbox, run)
        inside(self._site.mailbox, mailbox.path)
        return Files(mailbox, State(self._site.state, run))

    def _look(self, files: Files, keys: Iterable[str] = ()) -> Records:
        """Ask the scheduler now, for what must not rest on an old answer."""
        ids, names = _who(files, keys)
        return Records(files, self._watch.fresh(ids, names))

    def _ask_scheduler(self) -> object:
        return self._watch.recent()

    def _pace(self) -> dict[str, float]:
        return {"first": self._site.poll.first, "longest": self._site.poll.longest}


_HANDLERS: dict[type, _Handler] = {
    rpc.Probe: Agent._probe,
    rpc.Submit: Agent._submit,
    rpc.Place: Agent._place,
    rpc.Tell: Agent._tell,
    rpc.Poll: Agent._poll,
    rpc.Cancel: Agent._cancel,
    rpc.Read: Agent._read,
    rpc.Tidy: Agent._tidy,
    rpc.Work: Agent._work,
    Reach: Agent._reach,
    Exchange: Agent._exchange,
}


@contextmanager
def _not_submitting(files: Files, keys: Iterable[str]) -> Iterator[None]:
    """Wait for submissions that are under way, and hold off others.

    A job that the batch system is just taking would not be seen, and would stay.
    """
    assignments = sorted({split_job(key)[0] for key in keys})
    with ExitStack() as held:
        if files.state.path.is_dir():  # else nothing was ever submitted
            for assignment in assignments:  # in order, so that no two wait for ever
                held.enter_context(alone(files.state.lock(assignment)))
        yield


def _who(files: Files, keys: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the scheduler's ids of jobs, and the names of those without a note."""
    ids, names = set(), set()
    for key in keys:
        note = files.noted(key)
        if note is not None:
            ids.add(note.job)
        else:
            names.add(job_name(files.mailbox.run, *split_job(key)))
    return ids, names


def _broken(site: str, error: OSError) -> HansaError:
    where = f" ({error.filename})" if error.filename else ""
    return FacilityError(
        f"The site agent of {site} can't work: {error.strerror or error}{where}.",
        hint="Can this user read and write the mailbox and the folder `state`?",
    )
