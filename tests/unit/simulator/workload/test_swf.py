from __future__ import annotations

from pathlib import Path

import pytest
from swf import swf_line

from hansa.core.errors import SimulationError
from hansa.simulator.workload import TraceJob, Workload, read_workload, remarks

HEADER = (
    "; Version: 2.2\n;   Computer: Z\N{LATIN SMALL LETTER U WITH DIAERESIS}rich 3\n\n"
)


def read(folder: Path, *lines: str, node_cores: int = 1) -> Workload:
    path = folder / "jobs.swf"
    path.write_bytes((HEADER + "\n".join(lines) + "\n").encode("latin-1"))
    return read_workload(path, node_cores)


def test_a_line_is_a_job(tmp_path: Path) -> None:
    # Times count from the first submission; 130 of 4 processors a node are 33 nodes.
    found = read(
        tmp_path,
        "1 1000 7 60 16 -1 -1 16 120 -1 1 3 1 -1 0 0 -1 -1",
        "2 1030 90 3600.5 130 3599.2 1024 128 7200 -1 1 4 2 7 1 0 1 20",
        node_cores=4,
    )
    assert found == Workload(
        jobs=(
            TraceJob(0.0, 4, 60.0, 120.0, 7.0),
            TraceJob(30.0, 33, 3600.5, 7200.0, 90.0),
        )
    )
    assert remarks(Path("jobs.swf"), found) == ()


def test_what_is_unknown_is_taken_from_elsewhere_or_left_out(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        swf_line(
            0, 50, -1, -1, asked=8
        ),  # processors that were asked; time that it ran
        swf_line(5, 300, 2, 200),  # it ran over its walltime and was ended there
        swf_line(-1, 50, 2, 60),
        swf_line(10, -1, 2, 60),
        swf_line(10, 0, 2, 60),
        swf_line(10, 50, -1, 60),
        swf_line(10, 50, 0, 60, asked=0, status=5),
        swf_line(10, 50, 2, 60, status=2),  # a part of a job that has a line of its own
    )
    assert found.jobs == (
        TraceJob(0.0, 8, 50.0, 50.0, None),
        TraceJob(5.0, 2, 200.0, 200.0, None),
    )
    assert (found.left_out, found.unreadable) == (6, ())
    (said,) = remarks(Path("jobs.swf"), found)
    assert "6 jobs without a size or a time are left out" in said


def test_lines_that_can_not_be_read_are_set_aside_and_shown(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        swf_line(0, 50, 4, 60),
        "2 10 0 50 4",
        swf_line(20, 50, 4, 60, wait=-30),
        swf_line(20, -7, 4, 60),
        swf_line(20, 50, 4, 60).replace("50", "5O"),
        swf_line(20, 50, 4, 60).replace("50", "nan"),
        swf_line(30, 50, 4, 60) + " 19",
        swf_line(40, 50, 4, 60),
    )
    assert [job.submitted for job in found.jobs] == [0.0, 40.0]
    # The header has three lines.
    assert found.unreadable == (
        (5, "it has 5 fields, not 18: '2 10 0 50 4'"),
        (6, "its wait is negative, -30"),
        (7, "its run time is negative, -7"),
        (8, "'5O' is no number"),
        (9, "'nan' is no number"),
        (10, f"it has 19 fields, not 18: {(swf_line(30, 50, 4, 60) + ' 19')[:60]!r}"),
    )
    (said,) = remarks(Path("jobs.swf"), found)
    assert "6 lines can't be read; the first is line 5: it has 5 fields" in said


def test_lines_may_be_out_of_order(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        swf_line(500, 3, 1, 60),
        swf_line(100, 1, 1, 60),
        swf_line(300, 2, 1, 60),
    )
    assert [(job.submitted, job.runs) for job in found.jobs] == [
        (0.0, 1.0), (200.0, 2.0), (400.0, 3.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["what is this"], "line 4: it has 3 fields, not 18.*None of 1 lines"),
        ([swf_line(0, -1, 4, 60)], "none of its 1 jobs has"),
        ([], "line 1: there is no job in it"),
    ],
)
def test_a_file_without_a_usable_job_is_refused(
    tmp_path: Path, lines: list[str], words: str
) -> None:
    with pytest.raises(SimulationError, match=rf"jobs\.swf.*{words}") as raised:
        read(tmp_path, *lines)
    assert "Standard Workload Format" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "line 1: there is no job"),
        (b"; only\n; comments\n", "line 1: there is no job"),
        (b"1 2 3\n\x1f\x8b\0\0garbage\n", "line 2: it is no text"),
        (b"\xff\xfe\xfa\n", "line 1: it has 1 fields"),
    ],
)
def test_empty_and_binary_files_are_refused(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "jobs"
    path.write_bytes(data)
    with pytest.raises(SimulationError, match=words):
        read_workload(path, 1)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"lost\.swf: the workload can't be read"):
        read_workload(tmp_path / "lost.swf", 1)
    with pytest.raises(SimulationError, match="can't be read: Is a directory"):
        read_workload(tmp_path, 1)
