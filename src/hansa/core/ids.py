"""Deterministic names, so that doing a thing twice is doing it once.

============  ================================  =================================
what          example                           made of
============  ================================  =================================
assignment    ``train-0003-polaris-1``          kind, round, facility, attempt
              ``ahead-0002-polaris-1``          a job that was queued without an order
              ``trial-0001-polaris-1``          a test job of `hansa check --submit`
job           ``train-0003-polaris-1.2``        assignment, number of the job
job name      ``hansa.smol.train-0003-...-1.2`` run and job, shown by the queue
references    ``version/3``, ``update/train-…`` what a term of a sum points at
              ``state/control/3``               a state that was made with version 3
============  ================================  =================================

The attempt of an assignment counts the strategy's own new tries; the number of
the job counts the batch jobs that one try needed (crash, preemption, walltime).
"""

from __future__ import annotations

import re

from hansa.core.errors import SpecError

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?")
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STATE = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
"""Name of a stored state: a word of the strategy's, often with a facility's name."""
WHOLE = re.compile(r"0|[1-9][0-9]{0,8}")
WORD = r"^[A-Za-z0-9][A-Za-z0-9_.:@+-]{0,63}$"
"""One word of a batch system (queue, account): no option can be smuggled in by it."""
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
ASSIGNMENT = re.compile(
    rf"(train|evaluate|ahead|trial)-([0-9]{{4,9}})-({NAME.pattern})-([0-9]{{1,6}})"
)


def check_name(name: str, what: str) -> str:
    """Return `name` if it is safe as a file name, a job name and a YAML key.

    Raises:
        SpecError: The name has other characters than ``a-z 0-9 _ -``.
    """
    if NAME.fullmatch(name):
        return name
    raise SpecError(
        f"{name!r} can't be the name of a {what}.",
        hint="Use 1 to 32 of a-z, 0-9, '-' and '_', with a letter or digit at both "
        "ends.",
    )


def is_hub_id(source: str) -> bool:
    """Tell whether a model's source is a name on the Hugging Face hub, as ``org/name``.

    It is then looked up in a cache and never taken as a path.
    """
    return HUB_ID.fullmatch(source) is not None and ".." not in source


def check_run(run: str) -> str:
    """Return `run` if it is safe as a directory name.

    Raises:
        SpecError: The id is empty, too long, hidden or has a path separator.
    """
    if RUN.fullmatch(run) and ".." not in run:
        return run
    raise SpecError(
        f"{run!r} can't be the id of a run.",
        hint="Use up to 64 letters, digits, '.', '-' and '_'; start with a letter or "
        "digit.",
    )


def check_word(word: str) -> str:
    """Return `word` if it can name a queue, an account or a reservation.

    Raises:
        SpecError: It is not one plain word.
    """
    if re.fullmatch(WORD, word) and not word.endswith("\n"):
        return word
    raise SpecError(
        f"{word!r} can't name a queue, an account or a reservation.",
        hint="Use up to 64 letters, digits, '_', '.', ':', '@', '+' and '-'; start "
        "with a letter or digit.",
    )


def assignment_id(kind: str, round_: int, facility: str, attempt: int = 1) -> str:
    """Return the id of one piece of work, as ``train-0003-polaris-1``."""
    return f"{kind}-{round_:04d}-{facility}-{attempt}"


def is_assignment(text: str) -> bool:
    """Tell whether `text` has the form of an assignment id (and is path-safe)."""
    return ASSIGNMENT.fullmatch(text) is not None


def job_key(assignment: str, number: int) -> str:
    """Return the id of one batch job of an assignment; its directory's name too."""
    return f"{assignment}.{number}"


def is_ahead(key: str) -> bool:
    """Tell whether a job, by its key or assignment, was queued without an order."""
    return key.startswith("ahead-")


def job_name(run: str, assignment: str, number: int) -> str:
    """Return the name under which the batch queue shows a job."""
    return f"hansa.{run}.{job_key(assignment, number)}"


def version_ref(version: int) -> str:
    """Return the reference of a global version."""
    return f"version/{version}"


def update_ref(assignment: str) -> str:
    """Return the reference of the update that an assignment delivered."""
    return f"update/{assignment}"


def state_ref(name: str, version: int) -> str:
    """Return the reference of the state that was made with a version."""
    return f"state/{name}/{version}"


def state_of(ref: str) -> tuple[str, int] | None:
    """Return name and version of a state's reference; None if it is no such thing."""
    kind, _, rest = ref.partition("/")
    name, _, version = rest.partition("/")
    if kind != "state" or not STATE.fullmatch(name) or not WHOLE.fullmatch(version):
        return None
    return name, int(version)


def version_of(ref: str) -> int | None:
    """Return the number in a version's reference; None if it is no such thing."""
    kind, _, version = ref.partition("/")
    return int(version) if kind == "version" and WHOLE.fullmatch(version) else None
