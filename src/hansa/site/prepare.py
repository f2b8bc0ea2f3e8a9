"""From an allowed request to the files of a job."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from hansa.core.ids import job_name
from hansa.mailbox.files import json_text
from hansa.mailbox.paths import Mailbox
from hansa.scheduler.base import JobSpec
from hansa.site import policy
from hansa.site.rpc import SCHEMA, JobRequest, Order, Submit
from hansa.spec.site import EnvironmentSpec, SiteSpec

_VARIABLES = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
"""Environment of a job unless the site says otherwise."""


def order_json(order: Order) -> dict[str, Any]:
    """Return an order as it is written into the mailbox."""
    return order.model_dump(mode="json", by_alias=True)


def job_json(site: SiteSpec, ask: Submit) -> dict[str, Any]:
    """Return what the worker is told: the order with this site's paths and limits.

    Raises:
        PolicyError: The site does not allow the task or the model's source.
    """
    order = order_json(ask.order)
    order["model"]["source"] = policy.model_source(site, ask.order.model.source)
    access = policy.task_access(site, ask.order.task.name)
    mailbox = Mailbox(site.mailbox, ask.run)
    return {
        "schema": SCHEMA,
        "order": order,
        "number": ask.number,
        "facility": site.name,
        "mailbox": str(mailbox.path),
        "job_dir": str(mailbox.job(ask.order.assignment, ask.number).path),
        "task": {
            "name": ask.order.task.name,
            "source": None if access.data is None else str(access.data),
            "splits": _list(policy.groups(access, ask.order)),
            "test_splits": _list(access.test_splits),
            "cache": str(site.cache),
            "options": {**ask.order.task.options, **access.options},
        },
        "modules": list(site.modules),
        "walltime_s": ask.job.time,
        "heartbeat_s": site.heartbeat,
        "checkpoint_s": site.checkpoint,
    }


def job_spec(site: SiteSpec, ask: Submit) -> JobSpec:
    """Return the batch job that runs the worker on ``job.json``.

    Raises:
        PolicyError: As `job_json`.
    """
    files = Mailbox(site.mailbox, ask.run).job(ask.order.assignment, ask.number)
    environment = site.environment
    return JobSpec(
        name=job_name(ask.run, ask.order.assignment, ask.number),
        nodes=ask.job.nodes,
        time_s=ask.job.time,
        command=_command(site, ask),
        directory=files.path,
        log=files.log,
        queue=ask.job.queue,
        account=ask.job.account,
        reservation=ask.job.reservation,
        launch=_launch(environment, ask.job),
        setup=environment.setup,
        variables={**_VARIABLES, **environment.variables},
        warning_s=min(60.0, 0.2 * ask.job.time),
    )


def _command(site: SiteSpec, ask: Submit) -> list[str]:
    """Return the worker's command line.

    With ``-P`` Python imports nothing from the working directory, which anyone who
    may write the mailbox could fill. The digest ties the script, which the scheduler
    keeps, to the file that it names.
    """
    job = Mailbox(site.mailbox, ask.run).job(ask.order.assignment, ask.number).job
    digest = hashlib.sha256(json_text(job_json(site, ask)).encode()).hexdigest()
    worker = [_python(site.environment), "-P", "-m", "hansa.worker"]
    return [*worker, "run", str(job), "--sha256", digest]


def _list(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)


def _python(environment: EnvironmentSpec) -> str:
    """Return the interpreter: the agent's own unless the site names one."""
    default = EnvironmentSpec.model_fields["python"].default
    return sys.executable if environment.python == default else environment.python


def _launch(environment: EnvironmentSpec, job: JobRequest) -> str:
    return environment.launch.format(
        nodes=job.nodes,
        ranks_per_node=job.ranks_per_node,
        ranks=job.nodes * job.ranks_per_node,
    )
