"""Table and figure of scaling, and the lines for a federation file."""

from __future__ import annotations

from typing import Any

import pytest
from ruamel.yaml import YAML

from hansa.planner.record import Measurement, ThroughputRecord
from hansa.report.throughput import lines_to_paste, names_of, scaling_table

NONE = "–"  # noqa: RUF001


def measured(nodes: int, step_s: float, **more: Any) -> Measurement:
    words: dict[str, Any] = {
        "nodes": nodes,
        "ranks": 4 * nodes,
        "batch": 8 * nodes,
        "steps": 20,
        "step_s": step_s,
        **more,
    }
    return Measurement(**words)


POLARIS = ThroughputRecord(
    facility="polaris",
    federation="smol",
    measurements=(
        measured(
            1,
            0.5,
            sharding="fsdp",
            tokens_per_s=4096.0,
            data_s=0.05,
            communication_s=0.1,
            memory_bytes=31_000_000_000,
            startup_s=40.0,
            peak_share=0.412,
        ),
        measured(2, 0.625),
        measured(4, 0.5, repeat=1),
        measured(4, 0.8, repeat=2),
        measured(4, 1.0, repeat=3),
    ),
)
AURORA = ThroughputRecord(
    facility="aurora", federation="smol", measurements=(measured(2, 0.1),)
)


def test_a_row_for_each_facility_and_node_count() -> None:
    table = scaling_table([POLARIS, AURORA])
    assert table.rows == (
        (
            "polaris", "1", "4", "fsdp", "8", "16", "4,096", "100%", "500ms", "10%",
            "70%", "20%", "31.0 GB", "40.0s", "41.2%",
        ),
        (
            "polaris", "2", "8", NONE, "16", "25.6", NONE, "80%", "625ms", "0%",
            *[NONE] * 5,
        ),
        (
            "polaris", "4", "16", NONE, "32", "40", NONE, "62%", "800ms", "0%",
            *[NONE] * 5,
        ),
        (
            "aurora", "2", "8", NONE, "16", "160", NONE, "100%", "100ms", "0%",
            *[NONE] * 5,
        ),
    )  # fmt: skip


def test_records_are_told_apart_by_their_federation_only_where_it_is_needed() -> None:
    other = POLARIS.model_copy(update={"federation": "large"})
    assert names_of([POLARIS, AURORA]) == ["polaris", "aurora"]
    assert names_of([POLARIS, other]) == ["polaris, smol", "polaris, large"]


def test_lines_to_paste_hold_what_the_plan_needs() -> None:
    said = YAML(typ="safe").load(lines_to_paste(POLARIS, nodes=2, batch=32))
    told = said["facilities"]["polaris"]
    assert told["seconds_per_step"] == 1.25  # 32 examples at 25.6 a second
    speed = told["simulation"]["speed"]
    assert (speed["seconds_per_step"], speed["reference_nodes"]) == (1.25, 2)
    assert speed["nodes_exponent"] == pytest.approx(POLARIS.exponent, rel=1e-3)
    assert speed["startup"] == 40.0


def test_the_figure_has_the_measured_line_the_ideal_one_and_the_spread() -> None:
    pytest.importorskip("matplotlib")
    from hansa.report.figures.scaling import scaling_figure

    speed, parts = scaling_figure([POLARIS, AURORA]).axes
    assert (speed.get_xscale(), speed.get_yscale()) == ("log", "log")
    drawn = [line.get_xydata().tolist() for line in speed.lines]
    assert [[1, 16], [2, 32], [4, 64]] in drawn  # ideal
    assert [[1, 16], [2, 25.6], [4, 40]] in drawn
    (bars,) = (one for one in speed.containers if len(one[0].get_xdata()) == 3)
    (segments,) = (lines.get_segments() for lines in bars[2])
    assert segments[2].tolist() == [[4, 32], [4, 64]]
    low, high = speed.get_ylim()
    assert low < 16
    assert high > 160
    communication = [line for line in parts.lines if line.get_linestyle() == "-"]
    assert communication[0].get_xydata().tolist() == [[1, 0.2]]
