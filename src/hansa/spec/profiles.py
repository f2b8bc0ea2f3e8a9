"""Facts of known machines; one file each under `profiles/`.

Every fact says why it is there and which public page it was read on, so that
`hansa profiles show` can explain a machine line by line and `hansa site init` can
write a commented site.yaml from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from hansa.core.errors import SpecError
from hansa.core.shortform import ShortForm
from hansa.core.words import nearest
from hansa.spec.fields import (
    Count,
    Duration,
    Names,
    Section,
    Size,
    Texts,
    Variable,
)
from hansa.spec.problems import Document, fail, problems_of
from hansa.spec.yaml import read

_FOLDER = Path(__file__).parent / "profiles"


class Fact(Section):
    """Something that is so at a machine, why it matters, and who says it."""

    why: str = Field("", description="what it does there, as a sentence")
    source: Names = Field((), description="names in `documents`; none: nobody is cited")


class SchedulerFacts(Fact):
    """The batch system, as `scheduler` in a site.yaml."""

    type: str = Field(description="name of the scheduler plug-in")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the driver"
    )


class NodeFacts(Fact):
    """One node of a machine."""

    gpus: int = Field(ge=0, description="GPU cards")
    gpu: str | None = Field(None, description="what the GPU is called")
    gpu_memory: Size | None = Field(
        None, description="memory of the device (card, tile or die) that one rank uses"
    )
    devices: int | None = Field(
        None, description="devices that programs see; null: as many as cards"
    )
    torch: Literal["cuda", "xpu"] = Field(
        "cuda", description="what PyTorch calls the devices; AMD's are cuda, too"
    )
    ranks: int = Field(ge=1, description="ranks to start, one for each device")
    cores: int | None = Field(None, description="CPU cores; null: not known")
    memory: Size | None = Field(None, description="main memory; null: not known")

    @property
    def visible(self) -> int:
        """Devices that programs see; what `node.gpus` in a site.yaml means."""
        return self.gpus if self.devices is None else self.devices


class SizeLimit(Section):
    """What a queue allows to jobs up to a size."""

    nodes: Count = Field(description="most nodes of such a job")
    time: Duration = Field(gt=0, description="longest walltime of such a job")


class QueueFacts(Fact):
    """One queue, partition or quality of service, and what it allows."""

    name: str = Field(description="what `job.queue` says")
    least_nodes: Count | None = Field(None, description="fewest nodes of a job")
    nodes: Count | None = Field(None, description="most nodes of a job")
    time: Duration | None = Field(None, gt=0, description="longest walltime")
    running: Count | None = Field(None, description="most jobs of a user that run")
    queued: Count | None = Field(None, description="most jobs of a user that wait")
    bins: tuple[SizeLimit, ...] = Field(
        (), strict=False, description="shorter limits of smaller jobs, by size"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        sizes = [one.nodes for one in self.bins]
        if sizes != sorted(set(sizes)):
            raise ValueError("bins must go from small to large jobs")
        return self

    def longest(self, nodes: int) -> float | None:
        """Return the longest walltime of a job of so many nodes; None: not known."""
        fits = (one.time for one in self.bins if nodes <= one.nodes)
        return next(fits, self.time)


class Line(Fact):
    """One line or word of a site.yaml."""

    text: str = Field(description="as it is written there")


class VariableFact(Fact):
    """One environment variable of a job."""

    name: str = Field(description="its name")
    value: Variable = Field(description="its value")


class Profile(Section):
    """A known machine."""

    title: str = Field(description="name and place")
    like: str | None = Field(None, description="the profile that this one completes")
    documents: dict[str, str] = Field(
        default_factory=dict, description="addresses of the pages that facts cite"
    )
    scheduler: Annotated[SchedulerFacts, ShortForm("type")] = Field(
        description="the batch system"
    )
    node: NodeFacts = Field(description="one node")
    login: Line | None = Field(None, description="host to log in to")
    account: Line | None = Field(None, description="form of the project's name")
    job: dict[str, Any] = Field(
        default_factory=dict, description="defaults for a facility's `job`"
    )
    queues: tuple[QueueFacts, ...] = Field(
        (), strict=False, description="queues for GPU jobs, with their limits"
    )
    mailbox: Line | None = Field(
        None, description="a folder that login and compute nodes share"
    )
    state: Line | None = Field(
        None, description="the same for the facility's own notes, outside the mailbox"
    )
    directives: tuple[Line, ...] = Field(
        (), strict=False, description="scheduler lines that every job needs"
    )
    setup: tuple[Line, ...] = Field(
        (), strict=False, description="shell lines at the head of the job"
    )
    variables: tuple[VariableFact, ...] = Field(
        (), strict=False, description="environment variables of the job"
    )
    launch: Line | None = Field(None, description="what starts the ranks")
    python: Line | None = Field(
        None, description="interpreter of the environment that Hansa is installed in"
    )
    proxy: tuple[Line, ...] = Field(
        (),
        strict=False,
        description="how a compute node reaches the outside; a worker never needs it",
    )
    notes: Texts = Field((), description="what else to know")

    @model_validator(mode="after")
    def _cited(self) -> Self:
        for fact in self.facts():
            for name in fact.source:
                if name not in self.documents:
                    raise ValueError(f"source {name!r} is not among the documents")
        return self

    def facts(self) -> Iterator[Fact]:
        """Yield every fact, in the order of the file."""
        yield from (self.scheduler, self.node)
        yield from (fact for fact in (self.login, self.account) if fact)
        yield from self.queues
        yield from (fact for fact in (self.mailbox, self.state) if fact)
        yield from (*self.directives, *self.setup, *self.variables)
        yield from (fact for fact in (self.launch, self.python) if fact)
        yield from self.proxy

    def queue(self, name: str | None) -> QueueFacts | None:
        """Return what is known of a queue, or None."""
        return next((queue for queue in self.queues if queue.name == name), None)


def profile_names() -> list[str]:
    """Return the sorted names of all profiles, as ``alcf/polaris``."""
    return sorted(file.stem.replace("-", "/", 1) for file in _FOLDER.glob("*.yaml"))


@cache
def load_profile(name: str) -> Profile:
    """Return the profile `name`; each is read once.

    Raises:
        SpecError: There is no such profile (the nearest one is named).
    """
    if name not in profile_names():
        guess = nearest(name, profile_names())
        raise SpecError(
            f"There is no profile {name!r}.",
            hint=(f"Did you mean {guess!r}? " if guess else "")
            + f"Known: {', '.join(profile_names())}.",
        )
    doc = _completed(read(_FOLDER / f"{name.replace('/', '-', 1)}.yaml", "profile"))
    try:
        return Profile.model_validate(doc.data)
    except ValidationError as error:
        fail(problems_of(doc, error, Profile))


def _completed(doc: Document) -> Document:
    """Take what a profile that is `like` another one does not say from that one."""
    other = doc.data.get("like")
    if not isinstance(other, str):
        return doc
    low = load_profile(other).model_dump(mode="json", exclude_unset=True)
    return replace(doc, data={**low, **doc.data})
