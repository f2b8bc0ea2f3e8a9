"""Speed of transfers against their size: a line for each mover and facility."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from hansa.core.units import format_size
from hansa.report.figures.comparison.dress import log_axis
from hansa.report.figures.drawing import Picture, looks, render, shorten, style
from hansa.report.transfers import DIRECTIONS, TransferSpeed, label, lines_of

TITLES = {"put": "to the facility", "get": "from the facility"}
_CAPTION = (
    "Medians, from the first byte until everything was verified and on the disk; "
    "bars reach from the slowest to the fastest transfer."
)

_NEAR = 0.15
"""Sizes this near to each other, as a part of the axis, are not both named."""


def transfer_picture(found: Sequence[TransferSpeed]) -> Picture:
    """Return the picture of some measurements, at least one."""
    with style():
        figure = transfer_figure(found)
        return render(figure, "transfer", "Speed of transfers", _CAPTION)


def transfer_figure(found: Sequence[TransferSpeed]) -> Figure:
    """Draw a panel for each direction, with the same axes."""
    figure = Figure(figsize=(9.0, 4.0))
    both = figure.subplots(1, 2, sharex=True, sharey=True)
    names = lines_of(found)
    dress = looks([label(*name) for name in names])
    for axes, direction in zip(both, DIRECTIONS, strict=True):
        axes.set_title(TITLES[direction])
        for facility, mover in names:
            mine = [
                one
                for one in found
                if (one.facility, one.mover) == (facility, mover)
                and one.direction == direction
            ]
            name = label(facility, mover)
            if mine:
                _draw(axes, sorted(mine, key=lambda one: one.bytes), name, dress[name])
        _size_axis(axes, [one.bytes for one in found])
    _speed_axis(both[0], [speed for one in found for speed in one.speeds])
    _legend(figure, both)
    return figure


def _draw(
    axes: Axes, mine: Sequence[TransferSpeed], name: str, look: tuple[str, str]
) -> None:
    colour, marker = look
    middle = [one.bytes_per_second_median for one in mine]
    spread = [
        [mid - min(one.speeds) for mid, one in zip(middle, mine, strict=True)],
        [max(one.speeds) - mid for mid, one in zip(middle, mine, strict=True)],
    ]
    axes.errorbar(
        [one.bytes for one in mine], middle, yerr=spread, color=colour, marker=marker,
        markersize=5, linewidth=1.6, elinewidth=0.9, capsize=2, label=shorten(name, 40),
    )  # fmt: skip


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Mark the sizes that were measured; name those that are not too near."""
    log_axis(axes, "x", sizes)
    named, span = [max(sizes)], max(sizes) / min(sizes)
    for size in sorted(set(sizes), reverse=True):
        if named[-1] / size > span**_NEAR:
            named.append(size)
    axes.xaxis.set_major_locator(FixedLocator(named))
    axes.xaxis.set_minor_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _short(size)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("size")
    axes.grid(visible=True, axis="y")


def _speed_axis(axes: Axes, speeds: Sequence[float]) -> None:
    log_axis(axes, "y", speeds)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{_short(speed)}/s"))


def _short(size: float) -> str:
    return format_size(size).replace(".0 ", " ")


def _legend(figure: Figure, both: Sequence[Axes]) -> None:
    """Put the names of all lines below, each once."""
    named: dict[str, Any] = {}
    for axes in both:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    figure.legend(
        handles=named.values(), loc="outside lower left", ncols=min(len(named), 3),
        columnspacing=1.4,
    )  # fmt: skip
