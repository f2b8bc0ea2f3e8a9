"""What a bench of movers has found: figures, table, picture."""

from __future__ import annotations

from typing import Any

import pytest

from hansa.report.transfers import TransferSpeed, transfers_table

MB = 1_000_000


def speed(direction: str, size: int, *seconds: float, **more: Any) -> TransferSpeed:
    words: dict[str, Any] = {
        "facility": "polaris",
        "mover": "rsync",
        "extra_memory_bytes": 12 * MB,
        "programs_memory_bytes": 10 * MB,
        **more,
    }
    return TransferSpeed(direction=direction, bytes=size, seconds=seconds, **words)


FOUND = [
    speed("put", MB, 0.5, 0.25, 0.1),
    speed("get", MB, 0.2, 0.2, 0.4, extra_memory_bytes=20 * MB),
    speed("put", 900 * MB, 9.0, 9.0, 12.0),
    speed("put", MB, 1.0, facility="theta", mover="posix", extra_memory_bytes=None),
]


def test_the_median_counts() -> None:
    shown = FOUND[0].to_json()
    assert shown["seconds_median"] == 0.25
    assert shown["bytes_per_second_median"] == 4 * MB
    assert shown["seconds"] == [0.5, 0.25, 0.1]
    assert shown["extra_memory_bytes"] == 12 * MB
    keys = {"facility", "mover", "direction", "bytes", "programs_memory_bytes"}
    assert keys < set(shown)


def test_a_transfer_that_took_no_time_has_a_speed_all_the_same() -> None:
    assert speed("put", MB, 0.0).bytes_per_second_median > 1e12


def test_both_directions_stand_in_one_row() -> None:
    table = transfers_table(FOUND)
    none = "–"  # noqa: RUF001
    assert table.columns[-1] == "extra memory"
    assert table.rows == (
        (
            "polaris", "rsync", "1.0 MB", "0.250s", "4.0 MB", "0.200s", "5.0 MB",
            "20.0 MB",
        ),
        ("polaris", "rsync", "900 MB", "9.0s", "100 MB", none, none, "12.0 MB"),
        ("theta", "posix", "1.0 MB", "1.0s", "1.0 MB", none, none, none),
    )  # fmt: skip


def test_the_picture_shows_every_line_in_each_direction() -> None:
    pytest.importorskip("matplotlib")
    from hansa.report.figures.transfer import transfer_figure, transfer_picture

    figure = transfer_figure(FOUND)
    put, get = figure.axes
    assert [len(axes.containers) for axes in (put, get)] == [2, 1]
    line = put.containers[0].lines[0]
    assert list(line.get_xdata()) == [MB, 900 * MB]
    assert list(line.get_ydata()) == [4 * MB, 100 * MB]
    assert (put.get_xscale(), put.get_yscale()) == ("log", "log")
    low, high = put.get_ylim()
    assert low < MB  # the slowest of all
    assert high > 100 * MB
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["polaris, rsync", "theta, posix"]
    picture = transfer_picture(FOUND)
    assert picture.png.startswith(b"\x89PNG")
    assert b"<svg" in picture.svg


def test_a_single_measurement_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    from hansa.report.figures.transfer import transfer_figure

    figure = transfer_figure([speed("get", MB, 0.5)])
    assert [len(axes.containers) for axes in figure.axes] == [0, 1]
    left, right = figure.axes[0].get_xlim()
    assert left < MB < right


def test_sizes_that_are_too_near_are_not_both_named() -> None:
    pytest.importorskip("matplotlib")
    from hansa.report.figures.transfer import transfer_figure

    sizes = (MB, 10 * MB, 100 * MB, 1000 * MB, 1100 * MB)
    axis = transfer_figure([speed("put", size, 1.0) for size in sizes]).axes[0].xaxis
    named = sorted(axis.get_major_locator()())
    assert named == [MB, 10 * MB, 100 * MB, 1100 * MB]
    words = [axis.get_major_formatter()(size) for size in named]
    assert words == ["1 MB", "10 MB", "100 MB", "1.1 GB"]
