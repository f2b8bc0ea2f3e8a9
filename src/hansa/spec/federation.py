"""The experimenter's file: who trains what, how long, by which algorithm."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

import hansa
from hansa.core.errors import SpecError
from hansa.core.ids import check_word
from hansa.core.shortform import ShortForm
from hansa.spec.fields import (
    Count,
    Duration,
    LocalPath,
    Name,
    Names,
    PluginSection,
    Section,
    fill,
)
from hansa.spec.simulation import FacilitySimulation, SimulationSpec
from hansa.spec.yaml import dump

DType = Literal["float32", "bfloat16", "float16"]
Resume = Literal["resume", "give_up"]


def _word(text: str) -> str:
    try:
        return check_word(text)
    except SpecError as error:
        raise ValueError(f"{error.message} {error.hint}") from None


Word = Annotated[str, AfterValidator(_word)]
"""A word of the batch system; the facility would refuse any other, too."""


class ModelSpec(Section):
    """The model that is trained."""

    trainer: str = Field(description="name of the trainer plug-in")
    source: str = Field(
        description="where the first weights come from: a builtin name or a path "
        "that the facility lists under `models`"
    )
    dtype: DType = Field("float32", description="dtype that versions are published in")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the trainer for its model"
    )


class TaskChoice(Section):
    """The task, that is the kind of data, that all facilities train on."""

    name: str = Field(description="name of the task plug-in")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the task plug-in"
    )


class StrategyChoice(PluginSection):
    """The algorithm; its own options stand beside its name."""

    name: str = Field(description="name of the strategy plug-in")


class TargetSpec(Section):
    """A quality that ends the run when it is reached."""

    metric: str = Field("eval_loss", description="name of the metric")
    below: float = Field(description="the run ends once the metric is below this")


class StopSpec(Section):
    """When the run ends: at the first of these; at least one must be set."""

    rounds: Count | None = Field(None, description="number of global versions")
    updates: Count | None = Field(
        None, description="number of updates that have come, of all facilities together"
    )
    wall_clock: Duration | None = Field(
        None, description="time since the run began, on the server's clock"
    )
    node_hours: float | None = Field(
        None,
        gt=0,
        description="node-hours charged at all facilities together; a job is "
        "counted when it ends or is requeued, one that lingers not before",
    )
    target: TargetSpec | None = Field(None, description="quality to reach")

    @model_validator(mode="after")
    def _some_end(self) -> Self:
        if self.model_dump(exclude_none=True):
            return self
        raise ValueError(
            "the run would never end; set rounds, updates, wall_clock, node_hours "
            "or target"
        )


class EvaluationSpec(Section):
    """Where and how often the global model is measured."""

    on: Names = Field(
        (),
        min_length=1,
        description="facilities that may evaluate the global model; the first that is "
        "available does",
        json_schema_extra={"x-default": "all, in the order of the file"},
    )
    every: Count = Field(1, description="evaluate each so many versions, and the last")
    local: bool = Field(
        True, description="whether each facility also evaluates its own trained model"
    )


class UpdateSpec(Section):
    """How updates travel."""

    dtype: Literal["bfloat16", "float32", "int8"] = Field(
        "bfloat16",
        description="dtype of the differences that are sent; int8: one scale for each "
        "block, what rounding loses is added to the facility's next update",
    )
    compress: Literal["none", "zstd"] = Field(
        "none", description="lossless compression on the way"
    )


class AggregationSpec(Section):
    """How the store adds updates up, where that is not the strategy's to say."""

    adapters: Literal["average", "folded", "stacked"] = Field(
        "average",
        description="LoRA adapters: average both factors; or exactly, the mean of the "
        "products, with the rest folded into the frozen layers or kept as factors",
    )


class KeepSpec(Section):
    """What the server and the mailboxes keep."""

    versions: Count = Field(3, description="number of newest versions to keep")


class GatewayChoice(PluginSection):
    """How commands reach the facility; the plug-in's options stand beside its type."""

    type: str = Field(description="name of the gateway plug-in")


class MoverChoice(PluginSection):
    """How files reach the facility; the plug-in's options stand beside its type."""

    type: str = Field(description="name of the mover plug-in")


class JobSpec(Section):
    """What each batch job asks for."""

    nodes: Count = Field(1, description="number of nodes")
    time: Duration = Field(3600.0, gt=0, description="walltime")
    queue: Word | None = Field(None, description="queue or partition")
    account: Word | None = Field(None, description="project that is charged")
    reservation: Word | None = Field(None, description="reservation to run in")
    ranks_per_node: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="processes on each node; null: what the facility's site.yaml says",
    )


class WhenSpec(Section):
    """What to do about a job that ends, or waits, without a result."""

    timeout: Resume = Field(
        "resume",
        description="its walltime was over; a next job that gets further is no retry",
    )
    preempted: Resume = Field("resume", description="another job took its nodes")
    node_fail: Resume = Field("resume", description="a node of it failed")
    deleted: Resume = Field("give_up", description="somebody there deleted it")
    held: Literal["wait", "give_up"] = Field(
        "wait", description="it is held in the queue, by an administrator or a limit"
    )


class WorkSpec(PluginSection):
    """What one assignment does; the trainer's own options stand beside the steps."""

    steps: Count = Field(description="optimizer steps of one assignment")


class FacilitySpec(Section):
    """One facility."""

    profile: str | None = Field(
        None, description="facts of a known machine, as `alcf/polaris`"
    )
    gateway: Annotated[GatewayChoice, ShortForm("type")] = Field(
        description="how commands reach the facility"
    )
    mover: Annotated[MoverChoice, ShortForm("type")] = Field(
        description="how files reach the facility"
    )
    job: JobSpec = Field(
        default_factory=JobSpec, description="what each batch job asks for"
    )
    linger: Duration = Field(
        0.0,
        ge=0,
        description="how long a job waits in its allocation for the next order "
        "before it leaves; 0: it leaves at once",
    )
    queue_ahead: Duration = Field(
        0.0,
        ge=0,
        description="queue the next job while one runs; it waits so long in its "
        "allocation for an order; 0: jobs are queued when there is an order",
    )
    when: WhenSpec = Field(
        default_factory=WhenSpec,
        description="what to do about jobs that end without a result",
    )
    site: LocalPath | None = Field(
        None,
        description="a copy of the facility's site.yaml on this machine, for "
        "`hansa plan` only",
    )
    data: Names | None = Field(
        None, description="groups of the task's data to train on; null: all it has"
    )
    work: WorkSpec = Field(description="what one assignment does")
    seconds_per_step: float | None = Field(
        None,
        gt=0,
        description="how long a step of `work` takes on `job.nodes`, as `hansa bench "
        "throughput` has measured; strategies that go by speed begin with it; null: "
        "they learn it",
    )
    simulation: FacilitySimulation | None = Field(
        None, description="how the facility is simulated; a real run does not read it"
    )


class FederationSpec(Section):
    """A federation, complete: defaults, profiles and plug-in options are merged."""

    name: Name = Field(description="name of the federation")
    seed: int = Field(0, ge=0, description="seed of everything that is drawn")
    model: ModelSpec = Field(description="the model that is trained")
    task: Annotated[TaskChoice, ShortForm("name")] = Field(
        description="the kind of data that all facilities train on"
    )
    strategy: Annotated[StrategyChoice, ShortForm("name")] = Field(
        description="the algorithm"
    )
    stop: StopSpec = Field(description="when the run ends")
    evaluation: EvaluationSpec = Field(
        default_factory=EvaluationSpec,
        description="where and how often the global model is measured",
    )
    update: UpdateSpec = Field(
        default_factory=UpdateSpec, description="how updates travel"
    )
    aggregation: AggregationSpec = Field(
        default_factory=AggregationSpec, description="how updates are added up"
    )
    keep: KeepSpec = Field(default_factory=KeepSpec, description="what is kept")
    patience: Duration = Field(
        3600.0, gt=0, description="how long a facility may be silent before it is lost"
    )
    retries: Count = Field(
        3,
        description="batch jobs that one assignment may need; preempted ones, failed "
        "nodes and timeouts with progress don't count",
    )
    start_together: Duration | None = Field(
        None,
        gt=0,
        description="training jobs wait so long for each other and begin together; "
        "null: each begins when it starts",
    )
    facilities: dict[Name, FacilitySpec] = Field(
        min_length=1, description="the facilities, by name"
    )
    simulation: SimulationSpec | None = Field(
        None, description="for `hansa simulate` and `hansa compare`; see there"
    )

    @model_validator(mode="before")
    @classmethod
    def _all_evaluate(cls, data: object) -> object:
        if not isinstance(data, dict) or not isinstance(data.get("facilities"), dict):
            return data
        evaluation = data.get("evaluation", {})
        if isinstance(evaluation, dict):
            names = list(data["facilities"])
            return {**data, "evaluation": fill(evaluation, "on", names)}
        return data


def lock_text(spec: FederationSpec) -> str:
    """Return the plan as YAML that loads back equal, from any folder."""
    head = f"# Written by Hansa {hansa.__version__}: the plan of a run. Do not edit.\n"
    return head + dump(spec.model_dump(mode="json"))


def plan_hash(spec: FederationSpec) -> str:
    """Return the sha256 (hex) of the plan's canonical JSON.

    The order of keys does not matter; the order of `evaluation.on` does, which by
    default is the order of the facilities. Keys that a plan does not use and that older
    versions of Hansa did not know are left out, so that its hash stays.
    """
    plan = spec.model_dump(mode="json")
    for part in (plan, *plan["facilities"].values()):
        for key in ("simulation", "seconds_per_step"):
            if key in part and part[key] is None:
                del part[key]
    if plan["stop"]["updates"] is None:
        del plan["stop"]["updates"]
    canonical = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
