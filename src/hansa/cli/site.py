"""`hansa site …`: the facility's side."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hansa.cli.check import SUBMIT, WAIT, patience, progress, show
from hansa.cli.endpoint import globus_endpoint
from hansa.cli.options import JSON, SITE
from hansa.cli.output import say

if TYPE_CHECKING:
    from hansa.coordinator.findings import FacilityCheck
    from hansa.coordinator.preflight import Trials, Watch
    from hansa.spec.profiles import Profile


def register(app: typer.Typer) -> None:
    """Add this file's verbs."""
    group = typer.Typer(no_args_is_help=True, help="Run at a facility.")
    group.command()(init)
    group.command()(check)
    group.command()(globus_endpoint)
    group.command()(rpc)
    app.add_typer(group, name="site")


def rpc(site: Path = SITE) -> None:
    """Answer one JSON request from stdin on stdout: the only way into a facility."""
    from hansa.core.errors import HansaError, UsageError
    from hansa.site import rpc as messages
    from hansa.site.agent import Agent
    from hansa.spec import load_site

    _refuse_another_program()
    try:
        request = json.loads(sys.stdin.read())
        if not isinstance(request, dict):
            raise UsageError("The request is no JSON object.")
        reply = Agent(load_site(site)).handle(request)
    except json.JSONDecodeError as error:
        reply = messages.refusal(UsageError(f"The request is no JSON: {error}."))
    except HansaError as error:
        reply = messages.refusal(error)
    print(json.dumps(reply))


def _refuse_another_program() -> None:
    """End at once if a pinned key was asked for rsync, which would wait for ever."""
    from hansa.core.ssh import PINNED

    asked = os.environ.get("SSH_ORIGINAL_COMMAND", "").split()
    if asked and Path(asked[0]).name in ("rsync", "scp", "sftp-server"):
        say(f"hansa: {PINNED}, not {asked[0]}.")
        raise typer.Exit(2)


# --- init ---------------------------------------------------------------------------


def init(
    profile: str | None = typer.Option(
        None, "--profile", help="A known machine, as alcf/polaris; see hansa profiles."
    ),
    name: str | None = typer.Option(
        None, "--name", help="Name of the facility; else the machine's."
    ),
    mailbox: str | None = typer.Option(
        None, "--mailbox", help="Folder that login and compute nodes share."
    ),
    state: str | None = typer.Option(
        None, "--state", help="Folder for Hansa's own notes, outside of the mailbox."
    ),
    task: list[str] | None = typer.Option(
        None, "--task", help="NAME=DATA or NAME: a task that may run here; repeat it."
    ),
    project: str | None = typer.Option(
        None, "--project", help="Put where the profile says PROJ."
    ),
    user: str | None = typer.Option(
        None, "--user", help="Put where the profile says USER."
    ),
    out: Path = typer.Option(Path("site.yaml"), "-o", "--out", help="File to write."),
) -> None:
    """Write a commented site.yaml for this facility."""
    from hansa.core.errors import UsageError
    from hansa.core.ids import check_name
    from hansa.spec.profiles import load_profile
    from hansa.spec.site_text import SiteWish, site_text

    facts = _found_here() if profile is None else load_profile(profile)
    called = name or (profile or "").rpartition("/")[2]
    if not called:
        raise UsageError("The facility has no name yet.", hint="Add --name NAME.")
    wish = SiteWish(
        name=check_name(called, "facility"),
        machine=profile,
        mailbox=mailbox,
        state=state,
        tasks=_tasks(task or ()),
        project=project,
        user=user,
    )
    text = site_text(facts, wish)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(
            f"{out} exists and is left as it is.", hint="Name another file with -o."
        ) from None
    except OSError as error:
        raise UsageError(
            f"{out} can't be written: {error.strerror or error}.",
            hint="Name a file in a folder that is there and yours to write with -o.",
        ) from error
    print(out)
    say(f"Read it through, then: hansa site check --site {out} --submit")


def _tasks(given: list[str] | tuple[()]) -> dict[str, str | None]:
    from hansa.core import plugins
    from hansa.core.errors import UsageError
    from hansa.core.words import nearest

    tasks: dict[str, str | None] = {}
    for text in given:
        name, _, data = text.partition("=")
        known = plugins.names(plugins.TASKS)
        if name not in known:
            guess = nearest(name, known)
            raise UsageError(
                f"There is no task {name!r}.",
                hint=f"Did you mean {guess!r}?" if guess else f"Known: {known}.",
            )
        tasks[name] = data or None
    return tasks


def _found_here() -> Profile:
    """Return what can be seen of this machine: which batch system answers."""
    import shutil

    from hansa.spec.profiles import load_profile
    from hansa.spec.site_text import plain_profile

    for command, scheduler, title in (
        ("sbatch", "slurm", "Slurm"),
        ("qsub", "pbs", "PBS"),
    ):
        if shutil.which(command):
            say(f"Found {command}: a facility with {title}.")
            return plain_profile(scheduler, f"a machine with {title}")
    say("Found neither sbatch nor qsub: jobs will be processes of this machine.")
    return load_profile("local")


# --- check --------------------------------------------------------------------------


def check(
    site: Path = SITE,
    submit: bool = SUBMIT,
    wait: str = WAIT,
    queue: str | None = typer.Option(None, "--queue", help="Queue of that job."),
    account: str | None = typer.Option(
        None, "--account", help="Project that is charged for it."
    ),
    json_: bool = JSON,
) -> None:
    """Check a site.yaml and the facility's own health."""
    import asyncio

    from hansa.coordinator.preflight import Trials
    from hansa.spec import load_site

    longest = patience(wait)
    name = load_site(site).name
    trials = Trials(patience=longest) if submit else None
    job = {"nodes": 1, "queue": queue, "account": account}
    with progress(loud=submit) as watch:
        found = asyncio.run(_look(site.absolute(), name, job, trials, watch))
    raise typer.Exit(show(str(site), [found], as_json=json_))


async def _look(
    site: Path,
    name: str,
    job: dict[str, str | int | None],
    trials: Trials | None,
    watch: Watch,
) -> FacilityCheck:
    from hansa.coordinator import preflight, trial
    from hansa.coordinator.findings import FacilityCheck
    from hansa.core.remarks import PROBLEM
    from hansa.gateway.local import LocalGateway, LocalOptions

    found = FacilityCheck(name)
    gateway = LocalGateway(LocalOptions(site=site))
    try:
        watch(name, "asking")
        if not await preflight.ask_health(gateway, found):
            return found
        preflight.tell_space(found)
        if trials is not None and found.probe.get("scheduler") == "block":
            found.add(
                "trial job",
                PROBLEM,
                "No job can be tried from here: jobs run in a block of nodes, which an "
                "endpoint of Globus Compute holds; nothing was submitted.",
                "Leave --submit out; on the server `hansa check FEDERATION.yaml "
                "--submit` tries one through the endpoint.",
            )
        elif trials is not None:
            longest = (found.probe.get("limits") or {}).get("time")
            time_s = min(trial.TIME_S, longest or trial.TIME_S)
            await preflight.try_out(
                gateway,
                found,
                {**job, "time": time_s},
                trials=trials,
                needs=[f"task {task}" for task in found.probe.get("tasks", ())],
                node=None,
                tell=lambda words: watch(name, words),
            )
    finally:
        await gateway.close()
        watch(name, "done")
    return found
