"""Pictures and page of a comparison: what is drawn, and where."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from hansa.report.comparison import (
    Comparison,
    Curve,
    Estimate,
    Ratio,
    Result,
    ScenarioResult,
)
from hansa.report.comparison_page import comparison_files
from hansa.report.figures.comparison.dress import (
    looks_of,
    paper_style,
    plate,
    round_numbers,
    spread,
)
from hansa.report.figures.comparison.loss import loss_figure, window
from hansa.report.figures.comparison.pareto import front, pareto_figure
from hansa.report.figures.comparison.plates import all_plates
from hansa.report.figures.comparison.shares import (
    participation_figure,
    staleness_figure,
)
from hansa.report.figures.comparison.targets import node_hours_figure, time_figure
from hansa.report.figures.comparison.timelines import timelines_figure
from hansa.report.tables import Table
from hansa.report.timeline import Interval, Timeline

NOTHING = Estimate(median=None, low=None, high=None)


def about(number: float) -> Estimate:
    return Estimate(median=number, low=number * 0.8, high=number * 1.5)


def made(strategy: str, mode: str, time: float | None, hours: float = 2.0) -> Result:
    return Result(
        strategy=strategy, mode=mode, seeds=4, reached=0 if time is None else 4,
        time_to_target_s=NOTHING if time is None else about(time),
        node_hours_to_target=NOTHING if time is None else about(hours),
        final_loss=about(0.1), mean_loss=about(0.3), node_hours=about(4.0),
        wall_clock_s=about(36000.0), versions=20, participation={"a": 12.0, "b": 3.5},
        late={"a": 0.0, "b": 1.0}, staleness={0: 6, 1: 2, 12: 2},
        queue_wait_s={"a": 60.0, "b": None}, grid={"defaults.work.lr": 0.1}, points=3,
        curve=Curve(
            times=(0.0, 18000.0, 36000.0), median=(1.0, 0.3, 0.1), low=(1.0, 0.2, 0.1),
            high=(1.0, 0.4, 0.2),
        ),
    )  # fmt: skip


def comparison(*names: str, modes: tuple[str, ...] = ("late",)) -> Comparison:
    places = tuple(
        ScenarioResult(
            name=name,
            horizon_s=36000.0,
            results=tuple(
                made(strategy, mode, time * (2 if mode == "published" else 1))
                for strategy, time in (("fedavg", 7200.0), ("tide", 3600.0))
                for mode in modes
            ),
        )
        for name in names
    )
    return Comparison(
        name="contest", target=0.25, seeds=4, facilities=("a", "b"), scenarios=places
    )


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with paper_style():
        yield


def texts(figure: Figure | None) -> str:
    assert figure is not None
    figure.canvas.draw()
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in axes.get_yticklabels()]
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return "|".join(found)


@given(st.floats(1e-4, 1e4), st.floats(1.05, 1e5))
def test_ticks_are_a_few_round_numbers(low: float, factor: float) -> None:
    found = round_numbers(low, low * factor)
    assert 2 <= len(found) <= 14
    assert all(low <= number <= low * factor for number in found)
    assert all(a < b for a, b in pairwise(found))


def test_ticks_of_some_axes() -> None:
    assert round_numbers(0.5, 900.0) == [1.0, 10.0, 100.0] or (
        round_numbers(0.5, 900.0) == [1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
    )
    assert round_numbers(0.9, 11.0) == [1.0, 2.0, 5.0, 10.0]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_labels_are_spread_and_keep_their_order(places: list[float]) -> None:
    found = spread(places, 0.05)
    ranked = [at for _, at in sorted(zip(places, found, strict=True))]
    assert all(b - a >= 0.05 - 1e-9 for a, b in pairwise(ranked))
    if all(b - a >= 0.05 for a, b in pairwise(sorted(places))):
        assert found == pytest.approx(places)


def test_the_front_holds_what_nobody_beats() -> None:
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 6.0), (2.0, 4.0), (4.0, 1.0)]
    assert front(points) == [(1.0, 5.0), (2.0, 4.0), (3.0, 1.0)]


def test_modes_share_a_colour_and_differ_in_form() -> None:
    looks = looks_of(comparison("calm", modes=("published", "late")))
    open_, full = looks["tide", "published"], looks["tide", "late"]
    assert open_.colour == full.colour == full.face
    assert (open_.line, full.line) == ("--", "-")
    assert open_.face != open_.colour
    assert full.label == "tide, late"
    (look,) = [looks_of(comparison("calm"))["tide", "late"]]
    assert (look.label, look.line) == ("tide", "-")


def test_a_window_ends_when_all_is_decided() -> None:
    (place,) = comparison("calm").scenarios
    assert window(place) == pytest.approx(1.6 * 7200)
    never = replace(place, results=(*place.results, made("fedbuff", "late", None)))
    assert window(never) == 36000.0


def test_lines_of_one_scenario_carry_their_names() -> None:
    found = comparison("calm")
    words = texts(loss_figure(found, looks_of(found)))
    assert "target 0.25" in words
    assert "tide 1" in words  # within the window only the first point is shown
    assert "fedavg" in words
    modes = comparison("calm", modes=("published", "late"))
    words = texts(loss_figure(modes, looks_of(modes)))
    assert "calm, published" in words
    assert "calm, late" in words
    many = comparison("calm", "busy", modes=("published", "late"))
    words = texts(loss_figure(many, looks_of(many)))
    for word in ("calm, late", "busy, published", "late", "tide"):
        assert word in words


def test_a_target_that_is_met_at_once_can_be_drawn() -> None:
    found = comparison("calm")
    at_once = tuple(
        replace(one, time_to_target_s=about(0.0), node_hours_to_target=about(0.0))
        for one in found.scenarios[0].results
    )
    place = replace(found.scenarios[0], results=at_once)
    assert window(place) == 36000.0
    drawn = all_plates(replace(found, scenarios=(place,)))
    assert [one.picture.name for one in drawn] == ["loss", "participation", "staleness"]


def test_modes_that_take_equally_long_are_both_seen() -> None:
    found = comparison("calm", modes=("published", "late"))
    place = found.scenarios[0]
    same = tuple(replace(r, time_to_target_s=about(60.0)) for r in place.results)
    found = replace(found, scenarios=(replace(place, results=same),))
    figure = time_figure(found, looks_of(found))
    assert figure is not None
    dots = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert len({float(line.get_ydata()[0]) for line in dots}) == 4


def test_nothing_is_cut_off_at_the_edges() -> None:
    found = comparison("calm", "one_slow_queue", modes=("published", "late"))
    place = found.scenarios[1]
    never = made("fedbuff", "published", None)
    slow = replace(place, results=(*place.results, never))
    found = replace(found, scenarios=(found.scenarios[0], slow))
    figure = time_figure(found, looks_of(found))
    assert figure is not None
    plate(figure, "x", "X", "")
    for dpi in (72, 200):  # letters have other widths in the PDF and in the PNG
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        inside, around = figure.get_tightbbox(), figure.bbox_inches
        assert inside.x0 >= around.x0
        assert inside.x1 <= around.x1


def test_times_have_rows_units_and_a_mark_for_what_is_not_reached() -> None:
    found = comparison("calm", "busy")
    (calm, busy) = found.scenarios
    lost = replace(busy, results=(busy.results[0], made("tide", "late", None)))
    found = replace(found, scenarios=(calm, lost))
    words = texts(time_figure(found, looks_of(found)))
    assert "hours to the target loss 0.25" in words
    assert "▶" in words
    assert "calm" in words
    assert "node-hours to the target" in texts(
        node_hours_figure(found, looks_of(found))
    )
    drawn = pareto_figure(found, looks_of(found))
    assert "calm" in texts(drawn)
    assert drawn is not None
    assert drawn.get_supxlabel() == "minutes to the target"  # 2 h at most


def test_shares_of_updates() -> None:
    found = comparison("calm", "busy")
    words = texts(staleness_figure(found, looks_of(found)))
    assert "mean 2.6" in words  # (6 * 0 + 2 * 1 + 2 * 12) / 10
    words = texts(participation_figure(found, looks_of(found)))
    assert "12" in words.split("|")
    assert "3.5" in words.split("|")


def test_timelines_are_panels() -> None:
    row = Timeline(
        end=7200.0,
        facilities={"a": (Interval(kind="queue", start=0.0, end=600.0),), "b": ()},
        versions={0: 1.0, 1: 700.0},
        resumed=(),
    )
    found = replace(comparison("calm"), timelines={("tide", "late"): row})
    words = texts(timelines_figure(found, looks_of(found)))
    assert "tide" in words
    assert "in the queue" in words
    assert "minutes since the start" in words


def test_what_is_not_there_is_not_drawn() -> None:
    found = comparison("calm")
    (place,) = found.scenarios
    bare = replace(made("tide", "late", None), curve=None, staleness={})
    found = replace(found, scenarios=(replace(place, results=(bare,)),), target=None)
    looks = looks_of(found)
    for draw in (
        loss_figure, time_figure, node_hours_figure, pareto_figure, staleness_figure,
        timelines_figure,
    ):  # fmt: skip
        assert draw(found, looks) is None
    assert [one.picture.name for one in all_plates(found)] == ["participation"]


def test_the_page_stands_alone_and_escapes_names() -> None:
    found = comparison("<b>calm</b>")
    table = Table(title="T & U", columns=("a",), rows=(("x < y",),))
    files = comparison_files(found, [table], ("Head <i>", ("Note",)), "hansa compare")
    page = files["index.html"].decode()
    assert "Head &lt;i&gt;" in page
    assert "x &lt; y" in page
    assert "<b>calm" not in page
    sources = re.findall(r'src="([^"]{0,20})', page)
    assert sources
    assert all(one.startswith("data:image/svg+xml") for one in sources)
    for name in ("loss", "time_to_target", "node_hours_to_target", "pareto"):
        assert files[f"{name}.png"].startswith(b"\x89PNG")
        assert files[f"{name}.pdf"].startswith(b"%PDF")
    again = comparison_files(found, [table], ("Head <i>", ("Note",)), "hansa compare")
    assert again == files


def test_json_has_what_scripts_rely_on() -> None:
    one = replace(
        made("tide", "late", None),
        final_loss=Estimate(median=math.inf, low=0.1, high=None),
        ratios=(
            Ratio(mode="late", strategy="fedavg", time=NOTHING, node_hours=NOTHING),
        ),
    )
    found = comparison("calm")
    place = replace(found.scenarios[0], results=(one,))
    data = replace(found, scenarios=(place,)).to_json()
    (told,) = data["scenarios"]  # type: ignore[misc]
    (result,) = told["results"]
    assert told["name"] == "calm"
    assert result["strategy"] == "tide"
    assert result["time_to_target_s"] is None
    assert result["node_hours_to_target"] is None
    assert result["final_loss"] is None
    assert result["final_loss_ci"] == [0.1, None]
    assert result["grid"] == {"defaults.work.lr": 0.1}
    assert result["ratios"]["late"]["to"] == "fedavg"
    assert result["staleness"] == {"0": 6, "1": 2, "12": 2}
