"""From an allowed request to the files of a job."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

from hansa.core.ids import job_key, job_name
from hansa.mailbox.files import json_text
from hansa.mailbox.paths import JobDir, Mailbox
from hansa.mailbox.state import JobNotes, State
from hansa.scheduler.base import JobSpec
from hansa.site import policy
from hansa.site.order import Order
from hansa.site.rpc import SCHEMA, Place, Submit
from hansa.spec.site import EnvironmentSpec, SiteSpec

VARIABLES = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
"""Environment of a job unless the site says otherwise.

`PYTHONSAFEPATH` does for launchers written in Python what ``-P`` does for the worker.
"""


def order_json(order: Order) -> dict[str, Any]:
    """Return an order as it is written into the mailbox."""
    return order.model_dump(mode="json", by_alias=True)


def assignment_of(ask: Submit | Place) -> str:
    """Return the assignment that a request is about."""
    return ask.order.assignment if isinstance(ask, Submit) else ask.assignment


def nonce_of(ask: Submit | Place) -> str:
    """Return the word that tells this run from an older one of the same id."""
    return ask.order.nonce if isinstance(ask, Submit) else ask.nonce


def notes_of(site: SiteSpec, ask: Submit | Place) -> JobNotes:
    """Return the facility's own directory of the job."""
    return State(site.state, ask.run).job(assignment_of(ask), ask.number)


def job_dir(site: SiteSpec, ask: Submit | Place) -> JobDir:
    """Return the job's directory in the mailbox."""
    return Mailbox(site.mailbox, ask.run).job(assignment_of(ask), ask.number)


def job_json(site: SiteSpec, ask: Submit | Place) -> dict[str, Any]:
    """Return what the worker is told: the order with this site's paths and limits.

    Raises:
        PolicyError: The site does not allow the task or the model's source.
    """
    choice, job = site.scheduler, ask.job
    order = ask.order if isinstance(ask, Submit) else None
    return {
        "schema": SCHEMA,
        "key": job_key(assignment_of(ask), ask.number),
        "order": None if order is None else _resolved(site, order),
        "number": ask.number,
        "nonce": nonce_of(ask),
        "facility": site.name,
        "mailbox": str(Mailbox(site.mailbox, ask.run).path),
        "job_dir": str(job_dir(site, ask).path),
        "state_dir": str(notes_of(site, ask).path),
        "task": None if order is None else _task(site, order),
        "modules": list(site.modules),
        "program": _program(site, order),
        "nodes": job.nodes,
        "ranks_per_node": policy.ranks_per_node(site, job),
        "launched": bool(site.environment.launch.strip()),
        "queue": job.queue,
        "account": job.account,
        "reservation": job.reservation,
        "walltime_s": job.time,
        "heartbeat_s": site.heartbeat,
        "checkpoint_s": site.checkpoint,
        "linger_s": job.linger,
        "ahead_s": ask.wait if isinstance(ask, Place) else 0.0,
        "hold_s": job.hold if order is not None and order.kind == "train" else 0.0,
        "scheduler": {
            "type": choice.type,
            "options": choice.options,
            "state": str(site.state),
        },
        "node": {"gpus": site.node.gpus, "gpu_memory": site.node.gpu_memory},
    }


def _resolved(site: SiteSpec, order: Order) -> dict[str, Any]:
    data = order_json(order)
    data["model"]["source"] = policy.source(site, order)
    return data


def _program(site: SiteSpec, order: Order | None) -> list[str]:
    """Return the command line of the program that an order names, if it does."""
    if order is None or order.model.trainer != policy.PROGRAM:
        return []
    words = policy.program(site, order.model.source)
    python = interpreter(site.environment)
    return [python if word == "python" else word for word in words]


def _task(site: SiteSpec, order: Order) -> dict[str, Any]:
    access = policy.task_access(site, order.task.name)
    return {
        "name": order.task.name,
        "source": None if access.data is None else str(access.data),
        "splits": _list(policy.groups(access, order)),
        "test_splits": _list(access.test_splits),
        "cache": str(site.cache),
        "options": {**order.task.options, **access.options},
    }


def digest(job: dict[str, Any]) -> str:
    """Return the sha256, in hex, of the file that `job_json` becomes."""
    return hashlib.sha256(json_text(job).encode()).hexdigest()


def job_spec(site: SiteSpec, ask: Submit | Place) -> JobSpec:
    """Return the batch job that runs the worker on ``job.json``.

    Raises:
        PolicyError: As `job_json`.
    """
    files, environment = job_dir(site, ask), site.environment
    return JobSpec(
        name=job_name(ask.run, assignment_of(ask), ask.number),
        nodes=ask.job.nodes,
        ranks_per_node=policy.ranks_per_node(site, ask.job),
        time_s=ask.job.time,
        command=_command(site, ask),
        directory=files.path,
        log=files.log,
        queue=ask.job.queue,
        account=ask.job.account,
        reservation=ask.job.reservation,
        launch=_launch(site, ask),
        setup=environment.setup,
        variables={**VARIABLES, **environment.variables},
        directives=environment.directives,
        warning_s=min(60.0, 0.2 * ask.job.time),
    )


def notes_for_people(site: SiteSpec, ask: Submit | Place) -> list[str]:
    """Return what the experimenter may not expect of an allowed job."""
    return list(_remarks(site, ask))


def _remarks(site: SiteSpec, ask: Submit | Place) -> Iterator[str]:
    ranks = policy.ranks_per_node(site, ask.job) * ask.job.nodes
    if ranks == 1 or site.environment.launch.strip():
        return
    yield (
        f"`environment.launch` of {site.name} is empty: the job is one process on "
        f"the first of its {ask.job.nodes} nodes."
        if ask.job.nodes > 1
        else f"`environment.launch` of {site.name} is empty: the job is one "
        f"process, not {ranks}."
    )


def _command(site: SiteSpec, ask: Submit | Place) -> list[str]:
    """Return the worker's command line.

    With ``-P`` Python imports nothing from the working directory, which anyone who
    may write the mailbox could fill. The digest ties the script, which the scheduler
    keeps, to the file that it names.
    """
    trial = assignment_of(ask).startswith("trial-")
    worker = [interpreter(site.environment), "-P", "-m", "hansa.worker"]
    worker += ["trial" if trial else "run", str(notes_of(site, ask).job)]
    return [*worker, "--sha256", digest(job_json(site, ask))]


def _list(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)


def interpreter(environment: EnvironmentSpec) -> str:
    """Return the interpreter: the agent's own unless the site names one."""
    default = EnvironmentSpec.model_fields["python"].default
    return sys.executable if environment.python == default else environment.python


def _launch(site: SiteSpec, ask: Submit | Place) -> str:
    each = policy.ranks_per_node(site, ask.job)
    return site.environment.launch.format(
        nodes=ask.job.nodes, ranks_per_node=each, ranks=ask.job.nodes * each
    )
