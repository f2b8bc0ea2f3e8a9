"""Tables of what `hansa bench throughput` has measured, and what to do with it."""

from __future__ import annotations

from collections.abc import Sequence

from hansa.core.units import format_size
from hansa.planner.record import Measurement, ThroughputRecord
from hansa.report.tables import NONE, Table


def names_of(records: Sequence[ThroughputRecord]) -> list[str]:
    """Return what each record is called: by its facility, if that tells them apart."""
    facilities = [record.facility for record in records]
    if len(set(facilities)) == len(facilities):
        return facilities
    return [f"{record.facility}, {record.federation}" for record in records]


def scaling_table(records: Sequence[ThroughputRecord]) -> Table:
    """Return a row for each facility and node count; of several jobs the median."""
    rows = [
        (record.facility, *_row(record, one))
        for record in records
        for one in record.middle()
    ]
    return Table(
        title="Throughput",
        columns=(
            "facility", "nodes", "ranks", "sharding", "batch", "samples/s", "tokens/s",
            "efficiency", "step", "data", "compute", "communication", "memory",
            "start-up", "of peak",
        ),
        rows=tuple(rows),
        left=frozenset({"facility", "sharding"}),
    )  # fmt: skip


def _row(record: ThroughputRecord, one: Measurement) -> tuple[str, ...]:
    return (
        str(one.nodes),
        str(one.ranks),
        one.sharding or NONE,
        str(one.batch),
        number(one.samples_per_s),
        NONE if one.tokens_per_s is None else number(one.tokens_per_s),
        f"{record.efficiency(one.nodes):.0%}",
        _seconds(one.step_s),
        _share(one.data_s, one.step_s),
        _share(one.compute_s, one.step_s),
        _share(one.communication_s, one.step_s),
        NONE if one.memory_bytes is None else format_size(one.memory_bytes),
        NONE if one.startup_s is None else f"{one.startup_s:.1f}s",
        NONE if one.peak_share is None else f"{one.peak_share:.1%}",
    )


def number(value: float) -> str:
    """Return a rate with three significant digits or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g}ms" if value < 1 else f"{value:.2f}s"


def _share(part: float | None, whole: float) -> str:
    return NONE if part is None else f"{part / whole:.0%}"


def lines_to_paste(record: ThroughputRecord, nodes: int, batch: int) -> str:
    """Return what a federation file may say of the facility from now on.

    Args:
        record: What was measured, at least once.
        nodes: Nodes of the plan's jobs.
        batch: Examples of the plan's steps.
    """
    seconds = _rounded(record.seconds_per_step(nodes, batch))
    speed = f"seconds_per_step: {seconds}, reference_nodes: {nodes}"
    speed += f", nodes_exponent: {_rounded(record.exponent)}"
    if record.startup_s is not None:
        speed += f", startup: {_rounded(record.startup_s)}"
    return (
        "facilities:\n"
        f"  {record.facility}:\n"
        f"    seconds_per_step: {seconds}\n"
        f"    simulation: {{speed: {{{speed}}}}}"
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
