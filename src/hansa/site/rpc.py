"""The messages between server and facility: JSON in, JSON out, one request a call.

A request is ``{"schema": 1, "op": "poll", ...}``; a reply is
``{"schema": 1, "ok": true, "data": {...}}`` or
``{"schema": 1, "ok": false, "error": {...}}`` with an error's JSON form. Every request
may be sent twice without harm. Unknown keys are refused: a facility never guesses what
a newer server may have meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from hansa.core.errors import GatewayError, HansaError, UsageError, from_json
from hansa.site.exchange_request import Exchange, Reach
from hansa.site.order import (
    AssignmentId,
    JobKey,
    JobRequest,
    Message,
    Order,
    RunId,
    Word,
)

SCHEMA = 1
"""Number of the messages' form; both sides must speak the same."""

READ_LIMIT = 64 * 1024
"""Most bytes that one `read` returns."""


class Probe(Message):
    """Is the facility well?"""

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["probe"]


class Submit(Message):
    """Write an order and submit its job; with `dry_run`, only say what would be."""

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["submit"]
    run: RunId
    order: Order
    number: Annotated[int, Field(ge=1, le=999_999)]
    job: JobRequest
    dry_run: bool = False


class Place(Message):
    """Submit a job without an order.

    Attributes:
        assignment: ``ahead-...``: the job waits in its allocation for orders, at most
            `wait` seconds for the first one. ``trial-...``: it looks around on a
            compute node, says what it found, and ends.
    """

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["place"]
    run: RunId
    assignment: AssignmentId
    number: Annotated[int, Field(ge=1, le=999_999)]
    job: JobRequest
    wait: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    nonce: Word | Literal[""] = ""


class Tell(Message):
    """Say a word to jobs: `begin` to those that wait for it, or `leave`.

    A job that is told to leave finishes the orders that it has and lingers no more;
    one that still waits in the queue is taken out of it.
    """

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["tell"]
    run: RunId
    jobs: tuple[JobKey, ...]
    word: Literal["begin", "leave"]


class Poll(Message):
    """How do these jobs stand?"""

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["poll"]
    run: RunId
    jobs: tuple[JobKey, ...]


class Cancel(Message):
    """Take these jobs out of the queue.

    Attributes:
        late: Seconds within which a request to submit one of them may still arrive
            that was made before this one; until then such a request is refused.
    """

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["cancel"]
    run: RunId
    jobs: tuple[JobKey, ...]
    late: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 0.0


class Read(Message):
    """Show the end of a file of the run; `path` is relative to the run's mailbox."""

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["read"]
    run: RunId
    path: Annotated[str, Field(min_length=1, max_length=1024)]
    tail_bytes: Annotated[int, Field(ge=1, le=READ_LIMIT)] = READ_LIMIT


class Tidy(Message):
    """Remove what nobody needs any more.

    Attributes:
        keep: Versions to keep, with the states that came with them; the newest and
            those still in use are kept anyway.
        collected: Assignments whose updates the server holds: their updates and
            their jobs' checkpoints go, once no job of them waits or runs.
    """

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["tidy"]
    run: RunId
    keep: tuple[Annotated[int, Field(ge=0)], ...]
    collected: tuple[AssignmentId, ...] = ()


class Work(Message):
    """Run a job here, inside of a block of nodes, and answer when it is over.

    Of a job that was taken before, the answer comes at once: how it stands.
    """

    schema_: Literal[1] = Field(alias="schema")
    op: Literal["work"]
    run: RunId
    job: JobKey


Request = Annotated[
    Probe
    | Submit
    | Place
    | Tell
    | Poll
    | Cancel
    | Read
    | Tidy
    | Work
    | Reach
    | Exchange,
    Field(discriminator="op"),
]
_REQUEST: TypeAdapter[Request] = TypeAdapter(Request)


def parse_request(data: Mapping[str, Any]) -> Request:
    """Return a request as its type.

    Raises:
        UsageError: The schema number is another, the op is unknown, or a field is
            missing, unknown or of a wrong type.
    """
    if data.get("schema") != SCHEMA:
        raise UsageError(
            f"The request has schema {data.get('schema')!r}; this site agent speaks "
            f"{SCHEMA}.",
            hint="Install the same version of hansa on the server and the facility.",
        )
    try:
        return _REQUEST.validate_python(dict(data))
    except ValidationError as error:
        raise UsageError(
            f"The request {data.get('op')!r} can't be understood: {_first(error)}.",
            hint="Install the same version of hansa on the server and the facility.",
        ) from None


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def probe() -> dict[str, Any]:
    """Return a request for the facility's health."""
    return {"schema": SCHEMA, "op": "probe"}


def submit(
    run: str,
    order: Mapping[str, Any],
    number: int,
    job: Mapping[str, Any],
    *,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Return a request to submit job `number` of an order.

    Args:
        run: Id of the run.
        order: The order, as in the mailbox.
        number: Which batch job of the assignment this is, from 1.
        job: ``nodes``, ``ranks_per_node``, ``time`` (seconds), ``queue``, ``account``,
            ``reservation``, ``linger`` and ``hold`` (seconds).
        dry_run: Check all of it and return the script; write and submit nothing.
    """
    return {
        "schema": SCHEMA,
        "op": "submit",
        "run": run,
        "order": dict(order),
        "number": number,
        "job": dict(job),
        "dry_run": dry_run,
    }


def place(
    run: str,
    assignment: str,
    number: int,
    job: Mapping[str, Any],
    *,
    wait: float = 0.0,
    nonce: str = "",
) -> dict[str, Any]:
    """Return a request to submit a job without an order; see `Place`."""
    return {
        "schema": SCHEMA,
        "op": "place",
        "run": run,
        "assignment": assignment,
        "number": number,
        "job": dict(job),
        "wait": wait,
        "nonce": nonce,
    }


def tell(run: str, jobs: Iterable[str], word: str) -> dict[str, Any]:
    """Return a request to say `begin` or `leave` to some jobs."""
    return {
        "schema": SCHEMA,
        "op": "tell",
        "run": run,
        "jobs": list(jobs),
        "word": word,
    }


def poll(run: str, jobs: Iterable[str]) -> dict[str, Any]:
    """Return a request for the state of some jobs (``<assignment>.<number>``)."""
    return {"schema": SCHEMA, "op": "poll", "run": run, "jobs": list(jobs)}


def cancel(run: str, jobs: Iterable[str]) -> dict[str, Any]:
    """Return a request to cancel some jobs (``<assignment>.<number>``)."""
    return {"schema": SCHEMA, "op": "cancel", "run": run, "jobs": list(jobs)}


def read(run: str, path: str, tail_bytes: int = READ_LIMIT) -> dict[str, Any]:
    """Return a request for the end of a file, as ``jobs/<job>/log.txt``."""
    return {
        "schema": SCHEMA,
        "op": "read",
        "run": run,
        "path": path,
        "tail_bytes": tail_bytes,
    }


def tidy(
    run: str, keep: Iterable[int], collected: Iterable[str] = ()
) -> dict[str, Any]:
    """Return a request to remove what nobody needs any more.

    Args:
        run: Id of the run.
        keep: Versions to keep, with the states that came with them.
        collected: Assignments whose updates the server holds. The reply repeats, as
            ``collected``, those of which nothing is left; name the others again.
    """
    return {
        "schema": SCHEMA,
        "op": "tidy",
        "run": run,
        "keep": list(keep),
        "collected": list(collected),
    }


def work(run: str, job: str) -> dict[str, Any]:
    """Return a request to run a job (``<assignment>.<number>``) in a block of nodes."""
    return {"schema": SCHEMA, "op": "work", "run": run, "job": job}


def reply(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reply that carries `data`."""
    return {"schema": SCHEMA, "ok": True, "data": dict(data)}


def refusal(error: HansaError) -> dict[str, Any]:
    """Return the reply that carries an error."""
    return {"schema": SCHEMA, "ok": False, "error": error.to_json()}


def unwrap(message: object) -> dict[str, Any]:
    """Return the data of a reply, or raise the error that it carries.

    Raises:
        GatewayError: This is no reply, or one of another schema.
        HansaError: The agent's own error, under its own class.
    """
    if not isinstance(message, Mapping) or "ok" not in message:
        raise GatewayError(
            f"The facility's answer is no reply: {str(message)[:200]!r}.",
            hint="Does the remote command print anything else than `hansa site rpc`?",
        )
    if message.get("schema") != SCHEMA:
        raise GatewayError(
            f"The facility answers in schema {message.get('schema')!r}; this is "
            f"{SCHEMA}.",
            hint="Install the same version of hansa on the server and the facility.",
            transient=False,
        )
    if message["ok"] is True and isinstance(message.get("data"), Mapping):
        return dict(message["data"])
    if message["ok"] is False and isinstance(message.get("error"), Mapping):
        raise from_json(message["error"])
    raise GatewayError("The facility's reply has neither data nor an error.")
