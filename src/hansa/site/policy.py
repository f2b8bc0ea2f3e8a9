"""What a facility's own site.yaml allows. Pure: no files, no processes.

The server can only ask for a task by name, with parameters. What may run, over which
data, on how many nodes and for how long is decided here, by the facility's file; every
refusal names the key that refuses and what it would allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from hansa.core.errors import PolicyError
from hansa.core.ids import ASSIGNMENT, is_ahead, is_hub_id
from hansa.core.units import format_duration
from hansa.site.order import JobRequest, Order, split_job
from hansa.site.rpc import Place, Submit
from hansa.spec.site import SiteSpec, TaskAccess

PROGRAM = "program"
"""The trainer that starts a program of the facility."""


def check(site: SiteSpec, ask: Submit | Place) -> None:
    """Refuse what site.yaml does not allow.

    Raises:
        PolicyError: Says which key refuses and what it allows.
    """
    if isinstance(ask, Place):
        _check_place(site, ask)
    else:
        _check_address(site, ask)
        _check_data(site, ask.order)
        source(site, ask.order)
    _check_limits(site, ask.job)


def ranks_per_node(site: SiteSpec, job: JobRequest) -> int:
    """Return how many processes a job has on each node."""
    return site.node.ranks if job.ranks_per_node is None else job.ranks_per_node


def task_access(site: SiteSpec, task: str) -> TaskAccess:
    """Return what the task `task` may use here.

    Raises:
        PolicyError: It may not run here.
    """
    if task not in site.tasks:
        _refuse(site, "tasks", f"the task {task!r}", _listed(site.tasks))
    return site.tasks[task]


def groups(access: TaskAccess, order: Order) -> tuple[str, ...] | None:
    """Return the groups that an order may train on; None means all there are."""
    return access.splits if order.task.data is None else order.task.data


def source(site: SiteSpec, order: Order) -> str:
    """Return the model source of an order as it is here.

    Raises:
        PolicyError: site.yaml does not allow it.
    """
    name = order.model.source
    if order.model.trainer != PROGRAM:
        return model_source(site, name)
    program(site, name)
    return name


def program(site: SiteSpec, name: str) -> tuple[str, ...]:
    """Return the command line of a program.

    Raises:
        PolicyError: site.yaml does not list it.
    """
    if name not in site.programs:
        _refuse(site, "programs", f"the program {name!r}", _listed(site.programs))
    return site.programs[name]


def model_source(site: SiteSpec, source: str) -> str:
    """Return what a model source is here: renamed, or the name itself.

    A name on the Hugging Face hub is looked up in this facility's cache by the job.

    Raises:
        PolicyError: It is code or a path that site.yaml does not list.
    """
    if source in site.models:
        return str(site.models[source])
    if ":" in source:
        if source not in site.modules:
            _refuse(site, "modules", f"the code {source!r}", _listed(site.modules))
    elif _is_path(source) and not is_hub_id(source):
        _refuse(site, "models", f"the path {source!r}", _listed(site.models))
    return source


def _is_path(source: str) -> bool:
    """Tell paths from the bare names that a trainer brings along.

    A worker takes any other name as a path, relative to its working directory.
    """
    odd = ("/", "\\", "\0", "..")
    return (
        not source
        or source.startswith((".", "~", "$"))
        or any(text in source for text in odd)
    )


def check_queue(site: SiteSpec, ask: Submit | Place, names: Iterable[str]) -> None:
    """Refuse one more job of a run when it has as many as the facility allows.

    A job queued ahead leaves one place free: it would otherwise take each that becomes
    free, and an order that can't be handed over to it would never get one.

    Args:
        site: The facility.
        ask: What is to be submitted.
        names: Names of all jobs that wait or run.

    Raises:
        PolicyError: There are too many; transient, as they will end.
    """
    most = site.limits.jobs_in_queue
    present = sum(1 for name in names if _is_of_run(name, ask.run))
    free = isinstance(ask, Place) and is_ahead(ask.assignment)
    if most is not None and present >= most - free:
        raise PolicyError(
            f"{site.name} allows a run {most} jobs in the queue at once "
            f"(limits.jobs_in_queue in its site.yaml); this one has {present}"
            + (", and a job queued ahead leaves one place free." if free else "."),
            hint="Wait until one has ended.",
            transient=True,
        )


def _is_of_run(name: str, run: str) -> bool:
    prefix = f"hansa.{run}."
    if not name.startswith(prefix):
        return False
    try:
        split_job(name.removeprefix(prefix))
    except ValueError:
        return False
    return True


def _check_address(site: SiteSpec, ask: Submit) -> None:
    order = ask.order
    if order.facility != site.name:
        raise PolicyError(
            f"An order for {order.facility!r} came to the facility {site.name!r}.",
            hint="Does the gateway in federation.yaml point at the right site.yaml?",
        )
    if order.run != ask.run:
        raise PolicyError(f"An order of the run {order.run!r} came with {ask.run!r}.")
    problem = order.problem()
    if problem:
        raise PolicyError(f"The order contradicts itself: {problem}.")


def _check_data(site: SiteSpec, order: Order) -> None:
    access = task_access(site, order.task.name)
    if access.splits is None:
        return
    for group in order.task.data or ():
        if group not in access.splits:
            key = f"tasks.{order.task.name}.splits"
            _refuse(site, key, f"the data {group!r}", _listed(access.splits))


def _check_limits(site: SiteSpec, job: JobRequest) -> None:
    limits = site.limits
    if limits.nodes is not None and job.nodes > limits.nodes:
        what = f"a job of {job.nodes} nodes"
        _refuse(site, "limits.nodes", what, f"{limits.nodes} at most")
    if limits.time is not None and job.time > limits.time:
        what = f"a walltime of {format_duration(job.time)}"
        _refuse(site, "limits.time", what, f"{format_duration(limits.time)} at most")

    most = limits.linger
    if most is not None and job.linger > most:
        what = f"a job that lingers for {format_duration(job.linger)}"
        _refuse(site, "limits.linger", what, f"{format_duration(most)} at most")


def _check_place(site: SiteSpec, ask: Place) -> None:
    match = ASSIGNMENT.fullmatch(ask.assignment)
    if match is None or match[1] not in ("ahead", "trial"):
        raise PolicyError(f"A job without an order can't be called {ask.assignment!r}.")
    if match[3] != site.name:
        raise PolicyError(
            f"A job for {match[3]!r} came to the facility {site.name!r}.",
            hint="Does the gateway in federation.yaml point at the right site.yaml?",
        )
    most = site.limits.queue_ahead
    if match[1] == "ahead" and most is not None and (ask.wait > most or not most):
        what = f"a job queued ahead that waits {format_duration(ask.wait)} for an order"
        allowed = f"{format_duration(most)} at most" if most else "none"
        _refuse(site, "limits.queue_ahead", what, allowed)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


def _refuse(site: SiteSpec, key: str, what: str, allowed: str) -> NoReturn:
    raise PolicyError(
        f"{site.name} does not allow {what}; its site.yaml says so in `{key}`.",
        hint=f"Allowed: {allowed}. The facility's owner can change that.",
    )
