"""`hansa site globus-endpoint`: a Globus Compute endpoint that lets in only Hansa."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from hansa.cli.options import SITE
from hansa.cli.output import say

if TYPE_CHECKING:
    from hansa.site.endpoint.block import Block
    from hansa.site.endpoint.kit import Endpoint
    from hansa.spec import Profile, SiteSpec

_COMMANDS = {"slurm": "sbatch", "pbs": "qsub"}
_NEEDED = ("SLURM_CONF", "PBS_CONF_FILE", "PBS_SERVER", "PBS_DEFAULT")
"""Variables by which commands of a batch system find their server."""


FUNCTION = typer.Option(
    ..., "--function", help="Id that `hansa function register` printed."
)
PROGRAM = typer.Option(
    None,
    "--program",
    help="globus-compute-endpoint, in an environment of its own; else on the PATH.",
)
IDENTITY = typer.Option(
    None,
    "--identity",
    metavar="USER@DOMAIN[=LOCAL]",
    help="Where root runs it: map this Globus identity to a local user, else to the "
    "owner of site.yaml; repeat it.",
)
BLOCK = typer.Option(False, "--block", help="The second endpoint, which holds nodes.")
ENGINE = typer.Option(
    "GlobusComputeEngine", "--engine", help="Engine of --block, or GlobusMPIEngine."
)
PROFILE = typer.Option(
    None, "--profile", help="The machine, for --block; see hansa profiles."
)
QUEUE = typer.Option(None, "--queue", help="Queue of --block.")
ACCOUNT = typer.Option(None, "--account", help="Project that --block charges.")
TIME = typer.Option(
    None, "--time", help="Walltime of --block; else limits.time of site.yaml."
)
OUT = typer.Option(
    None, "-o", "--out", help="Folder; else ~/.globus_compute/hansa-NAME."
)


def globus_endpoint(
    function: str = FUNCTION,
    site: Path = SITE,
    program: Path | None = PROGRAM,
    identity: list[str] | None = IDENTITY,
    block: bool = BLOCK,
    engine: str = ENGINE,
    profile: str | None = PROFILE,
    queue: str | None = QUEUE,
    account: str | None = ACCOUNT,
    time: str | None = TIME,
    out: Path | None = OUT,
) -> None:
    """Write the configuration of a Globus Compute endpoint, commented for a review."""
    from hansa.site.endpoint.kit import Endpoint, endpoint_files, write_files
    from hansa.spec import load_site

    spec = load_site(site)
    facts = _profile(profile)
    held = _block(spec, facts, engine, queue, account, time) if block else None
    batch = held.batch if held else spec.scheduler.type
    commands, variables = _batch(spec, batch)
    endpoint = Endpoint(
        folder=_folder(out, spec.name, block=block),
        facility=spec.name,
        function=_id(function),
        program=_program(program),
        hansa=_hansa(),
        site=site.absolute(),
        commands=commands,
        variables=variables,
        identities=_identities(identity or (), site),
        block=held,
    )
    files = endpoint_files(endpoint)
    write_files(endpoint.folder, files)
    for name in files:
        print(endpoint.folder / name)
    _tell(endpoint)


def _tell(endpoint: Endpoint) -> None:
    from hansa.site.endpoint.kit import start_line

    say(f"Read {endpoint.folder / 'SECURITY.md'}, then, as the user who will run it:")
    say(f"  {endpoint.program} login")
    if endpoint.identities:
        say("  (as root; config.yaml wants a line `email: ADDRESS` first)")
    if endpoint.folder.parent != _home():
        say(f"  cp -r {endpoint.folder} {_home()}/")
    say(f"  {start_line(endpoint)}")


def _id(text: str) -> str:
    import uuid

    from hansa.core.errors import UsageError

    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise UsageError(
            f"{text!r} is not the id of a function.",
            hint="The server's `hansa function register` prints it.",
        ) from None


def _home() -> Path:
    import os

    named = os.environ.get("GLOBUS_COMPUTE_USER_DIR", "~/.globus_compute")
    return Path(named).expanduser()


def _folder(out: Path | None, facility: str, *, block: bool) -> Path:
    return (out or _home() / f"hansa-{facility}{'-block' * block}").absolute()


def _program(given: Path | None) -> Path:
    import os
    import shutil

    from hansa.core.errors import UsageError

    found = given or shutil.which("globus-compute-endpoint")
    if found and os.access(found, os.X_OK) and Path(found).is_file():
        return Path(found).absolute()
    what = f"{given} is no program" if given else "globus-compute-endpoint is not here"
    raise UsageError(
        f"{what}.",
        hint="Install it into an environment of its own: python3 -m venv DIR && "
        "DIR/bin/pip install 'globus-compute-endpoint>=4.19'; then add --program "
        "DIR/bin/globus-compute-endpoint.",
    )


def _hansa() -> Path:
    """Return the program of this very installation."""
    import shutil
    import sys

    from hansa.core.errors import UsageError

    beside = Path(sys.executable).absolute().with_name("hansa")
    found = beside if beside.is_file() else shutil.which("hansa")
    if found is None:
        raise UsageError(
            "There is no program hansa beside this Python.",
            hint="Install Hansa with pip, and run the program that it makes.",
        )
    return Path(found).absolute()


def _batch(spec: SiteSpec, batch: str) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Return folders and variables of the batch system's commands, as they are here."""
    import os
    import shutil

    from hansa.core.errors import UsageError

    command = _COMMANDS.get(batch)
    if command is None or spec.scheduler.options.get("bin"):
        return (), {}
    found = shutil.which(command)
    if found is None:
        raise UsageError(
            f"{command} is not on the PATH.",
            hint="Run this on a login node of the facility.",
        )
    names = [name for name in _NEEDED if os.environ.get(name)]
    return (Path(found).absolute().parent,), {name: os.environ[name] for name in names}


def _identities(given: list[str] | tuple[()], site: Path) -> dict[str, str]:
    import re

    from hansa.core.errors import UsageError

    mapped: dict[str, str] = {}
    for text in given:
        identity, _, local = text.partition("=")
        if not re.fullmatch(r"[^@\s]+@[^@\s]+", identity):
            raise UsageError(
                f"{identity!r} is no Globus identity.",
                hint="Write it as Globus shows it, user@domain, or user@domain=LOCAL.",
            )
        mapped[identity] = local or site.owner()
    return mapped


# --- block ----------------------------------------------------------------------------


def _profile(name: str | None) -> Profile | None:
    from hansa.spec import load_profile

    return None if name is None else load_profile(name)


def _block(
    spec: SiteSpec,
    facts: Profile | None,
    engine: str,
    queue: str | None,
    account: str | None,
    time: str | None,
) -> Block:
    from hansa.core.errors import UsageError
    from hansa.site.endpoint.block import COMPUTE, MPI, Block, batch_of

    if spec.scheduler.type != "block":
        raise UsageError(
            f"{spec.name}'s jobs go to {spec.scheduler.type}, not to a block of nodes.",
            hint="Write `scheduler: {type: block, nodes: N}` into its site.yaml, or "
            "leave --block out.",
        )
    if engine not in (COMPUTE, MPI):
        raise UsageError(
            f"There is no engine {engine!r} that holds nodes.",
            hint=f"Use {COMPUTE} or {MPI}.",
        )
    return Block(
        engine=engine,
        batch=batch_of(facts.scheduler.type if facts else _found()),
        options=facts.scheduler.options if facts else {},
        nodes=int(spec.scheduler.options["nodes"]),
        time=_walltime(time, spec.limits.time),
        queue=queue or (facts.job.get("queue") if facts else None),
        account=account,
        directives=spec.environment.directives,
        cores=facts.node.cores if facts else None,
        idle=spec.limits.linger or 300.0,
    )


def _found() -> Literal["slurm", "pbs", "no batch system"]:
    import shutil

    if shutil.which("sbatch"):
        return "slurm"
    return "pbs" if shutil.which("qsub") else "no batch system"


def _walltime(text: str | None, limit: float | None) -> float:
    from hansa.core.errors import UsageError
    from hansa.core.units import parse_duration

    if text is None and limit is not None:
        return limit
    try:
        seconds = parse_duration(text or "")
    except ValueError as error:
        raise UsageError(
            "How long may the block last?"
            if text is None
            else f"--time {text} is no walltime: {error}.",
            hint="Add --time 12h, or `limits: {time: 12h}` in site.yaml.",
        ) from None
    if not seconds > 0:
        raise UsageError("--time must be more than 0.", hint="Add --time 12h.")
    return seconds
