"""What `hansa bench throughput` has measured at a facility, as it is kept in a file.

Pure data: `hansa plan --memory`, the strategies' first estimates and the simulator read
it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hansa.core.errors import SpecError

SCHEMA: Final = 1
"""Number of the file's form; a reader refuses a larger one."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Measurement(_Part):
    """One job. Seconds are of one step, the mean over the timed steps and the ranks.

    Attributes:
        nodes: Nodes of the job.
        repeat: Which measurement on so many nodes, from 1.
        ranks: Processes that trained.
        batch: Examples of a step, over all ranks.
        steps: Steps that were timed.
        sharding: How the model was spread, as "fsdp"; empty: not told.
        precision: As "mixed"; empty: not told.
        device: As "cuda" or "cpu"; empty: not told.
        device_name: What its maker calls it.
        step_s: A step, from its data to the moved weights.
        data_s: The part of it in which a rank gets examples and makes tensors.
        communication_s: The part in which nothing but communication goes on; None:
            not known.
        tokens_per_s: Without those that only fill up; None: the trainer has no tokens.
        padding: Share of the tokens that only fill up.
        memory_bytes: Peak of the fullest rank: its GPU's, or the process's.
        host_memory_bytes: Peak of the largest process.
        startup_s: From the start of the process to the first step.
        first_step_s: The first step.
        flops: Floating-point operations of a second that the model itself needs, on
            one rank; None: its shape is not known.
        peak_share: That as a share of the device's peak in bfloat16; None: no GPU, or
            not one of known peak.
        waited_s: Seconds in the queue.
        at: Unix time of the measurement.
    """

    nodes: int = Field(ge=1)
    repeat: int = Field(1, ge=1)
    ranks: int = Field(ge=1)
    batch: int = Field(ge=1)
    steps: int = Field(ge=1)
    sharding: str = ""
    precision: str = ""
    device: str = ""
    device_name: str = ""
    step_s: float = Field(gt=0)
    data_s: float = Field(0.0, ge=0)
    communication_s: float | None = Field(None, ge=0)
    tokens_per_s: float | None = None
    padding: float | None = None
    memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    startup_s: float | None = None
    first_step_s: float | None = None
    flops: float | None = None
    peak_share: float | None = None
    waited_s: float | None = None
    at: float = 0.0

    @property
    def samples_per_s(self) -> float:
        """Examples of a second, over all ranks."""
        return self.batch / self.step_s

    @property
    def compute_s(self) -> float | None:
        """What of a step is neither data nor communication; None: not known."""
        if self.communication_s is None:
            return None
        return max(self.step_s - self.data_s - self.communication_s, 0.0)


class ThroughputRecord(_Part):
    """All measurements of one workload at one facility.

    Attributes:
        schema_: `SCHEMA`.
        facility: Where.
        federation: Name of the federation whose workload it is.
        scaling: "weak": the batch grows with the nodes; "strong": it stays.
        workload: What was trained: ``model``, ``task``, ``data``, ``work`` (without
            its batch) and ``ranks_per_node``, as in the federation's file.
        measurements: By nodes, then by `repeat`.
    """

    schema_: int = Field(SCHEMA, alias="schema")
    facility: str
    federation: str
    scaling: str = "weak"
    workload: dict[str, Any] = Field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """Node counts that were measured, sorted."""
        return tuple(sorted({one.nodes for one in self.measurements}))

    def of(self, nodes: int) -> Measurement:
        """Return the measurement on so many nodes; of several, the one in the middle.

        Raises:
            KeyError: There is none.
        """
        mine = [one for one in self.measurements if one.nodes == nodes]
        if not mine:
            raise KeyError(nodes)
        ordered = sorted(mine, key=lambda one: (one.samples_per_s, one.repeat))
        return ordered[(len(ordered) - 1) // 2]

    def middle(self) -> tuple[Measurement, ...]:
        """Return `of` for all node counts."""
        return tuple(self.of(nodes) for nodes in self.nodes)

    def efficiency(self, nodes: int) -> float:
        """Return samples a second and rank, relative to the fewest nodes."""
        first, mine = self.of(self.nodes[0]), self.of(nodes)
        each = first.samples_per_s / first.ranks
        return mine.samples_per_s / mine.ranks / each

    @property
    def exponent(self) -> float:
        """The e for which samples a second grow most nearly as ``nodes ** e``.

        Least squares of the logarithms, within 0 and 1; 1 with one node count only.
        """
        points = [(math.log(m.nodes), math.log(m.samples_per_s)) for m in self.middle()]
        x, y = (math.fsum(values) / len(points) for values in zip(*points, strict=True))
        spread = math.fsum((a - x) ** 2 for a, _ in points)
        if not spread:
            return 1.0
        slope = math.fsum((a - x) * (b - y) for a, b in points) / spread
        return min(1.0, max(0.0, slope))

    def seconds_per_step(self, nodes: int, batch: int) -> float:
        """Return how long a step takes: measured, between two that are, or beyond.

        Args:
            nodes: Nodes of the job.
            batch: Examples of the step, over all ranks.

        Returns:
            Seconds: the batch over the samples a second on so many nodes, which are
            interpolated on straight lines of their logarithms; beyond the node
            counts measured they grow by `exponent`.
        """
        return batch / self._samples_per_s(nodes)

    def _samples_per_s(self, nodes: int) -> float:
        known = self.nodes
        below = [one for one in known if one <= nodes]
        above = [one for one in known if one >= nodes]
        low = self.of(below[-1] if below else known[0])
        high = self.of(above[0] if above else known[-1])
        if low.nodes == high.nodes:
            return low.samples_per_s * math.pow(nodes / low.nodes, self.exponent)
        part = math.log(nodes / low.nodes) / math.log(high.nodes / low.nodes)
        growth = high.samples_per_s / low.samples_per_s
        return low.samples_per_s * math.pow(growth, part)

    @property
    def startup_s(self) -> float | None:
        """Median seconds from the start of a job's process to its first step."""
        known = [m.startup_s for m in self.measurements if m.startup_s is not None]
        return median(known) if known else None

    def with_(self, more: Sequence[Measurement]) -> ThroughputRecord:
        """Return the record with measurements added, later ones in place of earlier.

        Those on as many nodes with another batch go: medians are of one workload.
        """
        batches = {m.nodes: m.batch for m in more}
        same = [
            m for m in self.measurements if batches.get(m.nodes, m.batch) == m.batch
        ]
        by_key = {(m.nodes, m.repeat): m for m in (*same, *more)}
        found = tuple(by_key[key] for key in sorted(by_key))
        return self.model_copy(update={"measurements": found})

    def text(self) -> str:
        """Return the record as it is kept in a file."""
        data = self.model_dump(mode="json", by_alias=True)
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def read_record(text: str, name: str) -> ThroughputRecord:
    """Return the record in a file's text.

    Args:
        text: What the file holds.
        name: The file, for messages.

    Raises:
        SpecError: It is no record, or one of a newer Hansa.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SpecError(f"{name} is no JSON: {error}.", hint=_HINT) from None
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise SpecError(
            f"{name} has schema {schema!r}; this Hansa reads up to {SCHEMA}.",
            hint=_HINT,
        )
    try:
        return ThroughputRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SpecError(f"{name}: {place}: {first['msg']}.", hint=_HINT) from None


_HINT: Final = "`hansa bench throughput` writes such files."
