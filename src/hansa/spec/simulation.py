"""What `hansa simulate` and `hansa compare` are told: queues, speeds, lines, training.

A facility's own part stands beside its job and its work, in
`facilities.<name>.simulation`; what holds for all stands in `simulation`. A real run
reads none of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hansa.core.errors import SpecError
from hansa.core.shortform import ShortForm
from hansa.spec.fields import (
    Count,
    Duration,
    LocalPath,
    Name,
    Section,
    Size,
    Texts,
    listed,
)
from hansa.spec.overrides import parse

T = TypeVar("T")


def _items(value: object) -> object:
    if isinstance(value, list | tuple | str):
        return listed(value)
    raise ValueError("expected a list")


Items = Annotated[tuple[T, ...], BeforeValidator(_items)]
"""A list, as YAML has it."""
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Index = Annotated[int, Field(ge=0)]
Exponent = Annotated[float, Field(ge=-3, le=3)]
Growth = Annotated[float, Field(ge=0.01, le=100)]
"""A factor for each day: a simulated month of it is still a number."""
Rate = Annotated[float, Field(ge=0, le=60)]
"""Events in an hour; more than one a minute leaves no work to simulate."""


def _some(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value:
        raise ValueError("expected at least one entry")
    return value


def _alpha(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "iid" or (is_number and 0 < float(str(value)) < float("inf")):
        return value
    raise ValueError("expected a number greater than 0, or iid")


def _override(text: str) -> str:
    try:
        parse(text)
    except SpecError as error:
        raise ValueError(f"{error.message} {error.hint}") from None
    return text


def _few(value: dict[str, Any]) -> dict[str, Any]:
    for key, choices in value.items():
        if not choices:
            raise ValueError(f"there is nothing to choose from for {key!r}")
        _override(f"{key}=0")
    return value


Alpha = Annotated[float | Literal["iid"], BeforeValidator(_alpha)]
Overrides = Annotated[
    tuple[Annotated[str, AfterValidator(_override)], ...], BeforeValidator(listed)
]
Grid = Annotated[dict[str, Items[Any]], AfterValidator(_few)]
"""What may be chosen from, by key of the federation."""


class LognormalQueue(Section):
    """Waits drawn from a lognormal distribution, by what the job asks for and when.

    ``wait = median (nodes / reference_nodes)^nodes_exponent
    (time / reference_time)^time_exponent level(t) exp(sigma z)`` with z standard
    normal; `level` is the load: time of day, drift and memory.
    """

    type: Literal["lognormal"] = Field(description="waits are drawn")
    median: Duration = Field(description="median wait of a job of the reference size")
    sigma: float = Field(
        1.0,
        ge=0,
        le=4,
        description="spread: standard deviation of the wait's logarithm",
    )
    reference_nodes: Count = Field(1, description="nodes of the reference job")
    reference_time: Duration = Field(
        3600.0, gt=0, description="walltime of the reference job"
    )
    nodes_exponent: Exponent = Field(
        0.0, description="the wait grows with the nodes to this power"
    )
    time_exponent: Exponent = Field(
        0.0, description="the wait grows with the walltime asked to this power"
    )
    day_swing: Share = Field(
        0.0, description="share by which the wait rises and falls with the time of day"
    )
    peak_hour: float = Field(14.0, ge=0, lt=24, description="hour of the longest waits")
    drift_per_day: Growth = Field(
        1.0, description="factor by which waits grow with each day"
    )
    memory: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="correlation of a wait with one an hour earlier: busy stays busy",
    )
    tail: Share = Field(
        0.0, description="share of the jobs whose wait has a heavy (Pareto) tail"
    )
    tail_index: float = Field(
        1.5, gt=0, description="index of that tail; smaller is heavier"
    )


class SyntheticWorkload(Section):
    """Jobs of others, drawn: Poisson arrivals, sizes and times from wide laws."""

    load: float = Field(
        0.9, gt=0, lt=1.5, description="node-seconds asked per node and second"
    )
    mean_time: Duration = Field(3600.0, gt=0, description="mean run time of a job")
    sigma: float = Field(1.2, ge=0, le=3, description="spread of the run times")
    largest: float = Field(
        0.5, gt=0, le=1, description="largest job, as a share of the nodes"
    )
    overestimate: float = Field(
        2.0, ge=1, description="mean of the walltime asked over the run time"
    )
    day_swing: Share = Field(0.3, description="how arrivals follow the time of day")


class BackfillQueue(Section):
    """A scheduler with backfill, simulated over the jobs of others."""

    type: Literal["backfill"] = Field(description="a scheduler is simulated")
    nodes: Count = Field(description="nodes of the machine, or of the partition")
    workload: LocalPath | None = Field(
        None,
        description="jobs of others: a file in Standard Workload Format, or the output "
        "of `sacct --parsable2` or `qstat -f -F json`; null: drawn as `synthetic` says",
    )
    node_cores: Count = Field(
        1, description="processors in the workload file that are one node here"
    )
    synthetic: SyntheticWorkload = Field(
        default_factory=lambda: SyntheticWorkload.model_validate({}),
        description="jobs of others that are drawn",
    )
    warm_up: Duration = Field(
        86400.0,
        description="how long the others' jobs run before the federation begins",
    )
    interval: Duration = Field(
        0.0, description="the scheduler looks again every so often; 0: at each change"
    )


class ReplayQueue(Section):
    """Measured waits, one after the other, from a list or a file."""

    type: Literal["replay"] = Field(description="measured waits are used again")
    waits: Items[Duration] = Field((), description="the waits, in order")
    file: LocalPath | None = Field(
        None,
        description="a CSV file with a column `wait_s` and, if known, `submitted_s`, "
        "`nodes` and `time_s`",
    )
    order: Literal["sequence", "drawn", "time"] = Field(
        "sequence",
        description="sequence: one after the other, again from the start; drawn: any "
        "of them, by chance; time: that of the measurement next in time (needs "
        "`submitted_s`)",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if bool(self.waits) == (self.file is not None):
            raise ValueError("a replayed queue needs either `waits` or `file`")
        if self.order == "time" and self.file is None:
            raise ValueError("`order: time` needs a `file` with `submitted_s`")
        return self


QueueSpec = Annotated[
    LognormalQueue | BackfillQueue | ReplayQueue, Field(discriminator="type")
]


class SpeedSpec(Section):
    """How fast a job works."""

    seconds_per_step: Positive = Field(
        1.0, description="seconds of a step on the reference nodes"
    )
    reference_nodes: Count = Field(1, description="nodes for which that holds")
    nodes_exponent: Share = Field(
        1.0, description="speed grows with nodes to this power; 1: perfectly"
    )
    noise: float = Field(
        0.0, ge=0, le=1, description="spread of the speed from order to order"
    )
    drift_per_day: Growth = Field(
        1.0, description="factor by which a step's time grows with each day"
    )
    day_swing: float = Field(
        0.0, ge=0, lt=1, description="share by which it follows the time of day"
    )
    startup: Duration = Field(
        30.0, description="from the start of a job to its first step"
    )
    handover: Duration = Field(
        2.0, description="the same for an order that a running allocation takes on"
    )
    save: Duration = Field(1.0, description="writing an update, or a checkpoint")
    checkpoint: Duration = Field(600.0, gt=0, description="time between checkpoints")
    evaluate: Duration = Field(
        10.0, description="measuring a model: a version, where facilities do that"
    )
    evaluate_local: Duration = Field(
        0.0, description="measuring its own model after each training"
    )


class LinkSpec(Section):
    """The line between server and facility."""

    latency: Duration = Field(0.05, description="time before the first byte")
    bandwidth: Size = Field(200_000_000, gt=0, description="bytes in a second")


class Window(Section):
    """A span of time, once or again and again."""

    at: Duration = Field(description="when it begins, since the run began")
    lasts: Duration = Field(gt=0, description="how long")
    every: Duration | None = Field(None, gt=0, description="again after so long")

    @model_validator(mode="after")
    def _ends_before_it_begins_again(self) -> Self:
        if self.every is not None and self.every <= self.lasts:
            raise ValueError("a window that comes again must end before that")
        return self


class FailureSpec(Section):
    """What goes wrong at a facility."""

    preemptions_per_hour: Rate = Field(
        0.0, description="rate at which a running job is preempted"
    )
    grace: Duration = Field(
        0.0,
        description="warning before a preemption; a warned job delivers what it has",
    )
    node_failures_per_hour: Rate = Field(
        0.0, description="rate at which one node fails"
    )
    maintenance: Items[Window] = Field(
        (), description="no job runs in these; none starts that would run into one"
    )
    outages: Items[Window] = Field(
        (), description="nothing is answered, and running jobs are lost"
    )


class FacilitySimulation(Section):
    """A facility as it is simulated."""

    preset: str | None = Field(
        None,
        description="a described machine, as `polaris`; its keys lie beneath these",
    )
    queue: QueueSpec = Field(
        default_factory=lambda: LognormalQueue(type="lognormal", median=600.0),
        description="how long jobs wait",
        json_schema_extra={"x-default": "`{type: lognormal, median: 10m}`"},
    )
    speed: SpeedSpec = Field(
        default_factory=lambda: SpeedSpec.model_validate({}),
        description="how fast they work",
    )
    link: LinkSpec = Field(
        default_factory=lambda: LinkSpec.model_validate({}),
        description="the line to the server",
    )
    failures: FailureSpec = Field(
        default_factory=lambda: FailureSpec.model_validate({}),
        description="what goes wrong",
    )
    samples: Count | None = Field(
        None, description="training examples here; null: as many as everywhere"
    )
    classes: Annotated[Items[Index], AfterValidator(_some)] | None = Field(
        None,
        description="classes of a surrogate's data that lie here, in equal parts, "
        "counted from 0; null: drawn, as `training.alpha` says",
    )
    jobs_in_queue: Count | None = Field(
        None, description="jobs that may be in the queue at once; null: any number"
    )
    most_nodes: Count | None = Field(None, description="most nodes of a job")
    longest: Duration | None = Field(
        None, gt=0, description="longest walltime of a job"
    )
    notice: Duration = Field(
        5.0, description="how long after it happened the server hears of anything"
    )


class SurrogateTraining(Section):
    """A problem in numpy whose optimum is known; `loss` is 1 at first and 0 there.

    ``quadratic``: classes with quadratics of their own, each facility a mixture of
    them; many steps at once, in closed form. ``softmax``: a softmax regression on
    drawn classes, step by step.
    """

    type: Literal["surrogate"] = Field(
        description="a small problem stands for the model"
    )
    problem: Literal["quadratic", "softmax"] = Field(
        "quadratic", description="what is minimised"
    )
    dimensions: Count = Field(32, description="numbers of the model, or of an input")
    classes: int = Field(10, ge=2, description="classes of data")
    alpha: Alpha = Field(
        0.1, description="Dirichlet parameter of the classes at a facility; or `iid`"
    )
    condition: float = Field(20.0, ge=1, description="largest over smallest curvature")
    noise: float = Field(
        1.0, ge=0, description="standard deviation of one example's gradient"
    )
    bytes: Size = Field(
        250_000_000, description="size of a version (and of an update) on the line"
    )


class RealTraining(Section):
    """The worker's own trainer and task, in this process."""

    type: Literal["real"] = Field(description="the model itself is trained")
    bytes: Size | None = Field(
        None, description="size of a version on the line; null: what it really is"
    )


class NoTraining(Section):
    """Times and costs only: no model, no loss."""

    type: Literal["none"] = Field(description="nothing is trained")
    bytes: Size = Field(250_000_000, description="size of a version on the line")
    update_bytes: Size | None = Field(
        None, description="size of an update on the line; null: that of a version"
    )


TrainingSpec = Annotated[
    SurrogateTraining | RealTraining | NoTraining, Field(discriminator="type")
]


class CompareSpec(Section):
    """What `hansa compare` does when it is not told on the command line."""

    strategies: Texts = Field((), description="names of the strategies")
    modes: Items[Literal["published", "late"]] = Field(
        ("late",),
        description="published: one job a round, the model bound when it is submitted; "
        "late: bound when it starts, with `linger` and `queue_ahead` as in the file",
    )
    scenarios: Texts = Field((), description="names of scenarios; none: all")
    seeds: Count = Field(3, description="runs of each")
    target: float | None = Field(
        None, description="loss whose time is measured; null: `stop.target`"
    )
    grid: Grid = Field(
        default_factory=dict,
        description="what each strategy may choose from, by key of the federation, as "
        "`defaults.work.lr: [0.05, 0.1]`; the best for each scenario counts",
    )
    own_grid: dict[str, Grid] = Field(
        default_factory=dict,
        description="the same for one strategy, as `fedbuff: {strategy.k: [1, 2]}`",
    )


class SimulationSpec(Section):
    """How a federation is simulated."""

    training: Annotated[TrainingSpec, ShortForm("type")] = Field(
        default_factory=lambda: SurrogateTraining(type="surrogate"),
        description="what stands for the training",
        json_schema_extra={"x-default": "`surrogate`"},
    )
    evaluation: Literal["server", "facility"] = Field(
        "server",
        description="server: versions are measured at once and for nothing; facility: "
        "by batch jobs, as in a real run",
    )
    binding: Literal["start", "submission"] = Field(
        "start",
        description="when a job takes its version: when it starts, or (as other "
        "systems do) when it is submitted",
    )
    server_bandwidth: Size | None = Field(
        None, gt=0, description="bytes in a second that all lines share; null: no limit"
    )
    aggregate: Duration = Field(1.0, description="making a version")
    start_hour: float = Field(8.0, ge=0, lt=24, description="hour at which it begins")
    scenarios: dict[Name, Overrides] = Field(
        default_factory=dict,
        description="variants by name: overrides, as on the command line; none: the "
        "file as it is",
    )
    compare: CompareSpec = Field(
        default_factory=lambda: CompareSpec.model_validate({}),
        description="what `hansa compare` does",
    )
