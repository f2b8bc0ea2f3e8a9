"""What a facility's own site.yaml allows. Pure: no files, no processes.

The server can only ask for a task by name, with parameters. What may run, over which
data, on how many nodes and for how long is decided here, by the facility's file; every
refusal names the key that refuses and what it would allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from hansa.core.errors import PolicyError
from hansa.core.units import format_duration
from hansa.site.rpc import JobRequest, Order, Submit, split_job
from hansa.spec.site import SiteSpec, TaskAccess


def check(site: SiteSpec, ask: Submit) -> None:
    """Refuse what site.yaml does not allow.

    Raises:
        PolicyError: Says which key refuses and what it allows.
    """
    _check_address(site, ask)
    _check_data(site, ask.order)
    model_source(site, ask.order.model.source)
    _check_limits(site, ask.job)
    _check_ranks(site, ask.job)


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


def model_source(site: SiteSpec, source: str) -> str:
    """Return what a model source is here: renamed, or the name itself.

    Raises:
        PolicyError: It is code or a path that site.yaml does not list.
    """
    if source in site.models:
        return str(site.models[source])
    if ":" in source:
        if source not in site.modules:
            _refuse(site, "modules", f"the code {source!r}", _listed(site.modules))
    elif _is_path(source):
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


def check_queue(site: SiteSpec, run: str, names: Iterable[str]) -> None:
    """Refuse one more job of a run when it has as many as the facility allows.

    Args:
        site: The facility.
        run: The run that wants to submit.
        names: Names of all jobs that wait or run.

    Raises:
        PolicyError: There are too many; transient, as they will end.
    """
    most = site.limits.jobs_in_queue
    present = sum(1 for name in names if _is_of_run(name, run))
    if most is not None and present >= most:
        raise PolicyError(
            f"{site.name} allows a run {most} jobs in the queue at once "
            f"(limits.jobs_in_queue in its site.yaml); this one has {present}.",
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


def _check_ranks(site: SiteSpec, job: JobRequest) -> None:
    """Refuse to start copies: a worker is one process, which knows of no others."""
    launch, ranks = site.environment.launch.strip(), job.nodes * job.ranks_per_node
    if launch and ranks > 1:
        raise PolicyError(
            f"{site.name} would start {ranks} copies of a worker that trains alone: "
            f"`environment.launch` in its site.yaml is {launch!r}, and the job asks "
            f"for `job.nodes` {job.nodes} with {job.ranks_per_node} ranks a node.",
            hint="Ask for one node with one rank, or let the facility's owner leave "
            "environment.launch empty: the job is then one process on its first node.",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


def _refuse(site: SiteSpec, key: str, what: str, allowed: str) -> NoReturn:
    raise PolicyError(
        f"{site.name} does not allow {what}; its site.yaml says so in `{key}`.",
        hint=f"Allowed: {allowed}. The facility's owner can change that.",
    )
