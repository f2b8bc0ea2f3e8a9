from __future__ import annotations

import json
from pathlib import Path

import pytest
from batch_samples import golden

from hansa.core.errors import SimulationError
from hansa.simulator.workload import TraceJob, Workload, read_workload
from hansa.simulator.workload.exports import SACCT

FIELDS = "JobID|Submit|Start|End|Elapsed|Timelimit|AllocNodes|State"


def read(folder: Path, *lines: str, node_cores: int = 1) -> Workload:
    path = folder / "jobs.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_workload(path, node_cores)


def test_sacct(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        FIELDS,
        "17|2026-03-01T10:00:00|2026-03-01T10:20:00|2026-03-01T11:20:00|01:00:00|"
        "02:00:00|8|COMPLETED",
        "17.batch|2026-03-01T10:20:00|2026-03-01T10:20:00|2026-03-01T11:20:00|01:00:00|"
        "|1|COMPLETED",
        "17.0|2026-03-01T10:21:00|2026-03-01T10:21:00|2026-03-01T11:20:00|00:59:00||8|"
        "COMPLETED",
        "18_3|2026-03-01T10:00:05|2026-03-01T10:00:05|2026-03-02T11:00:10|1-01:00:05|"
        "UNLIMITED|1K|CANCELLED by 1000",
        "19|2026-03-01T10:00:07|2026-03-01T10:01:07|Unknown|5-00:00:00|02:00:00|2|RUNNING",
        "20|2026-03-01T10:00:08|Unknown|Unknown|00:00:00|02:00:00|0|PENDING",
        "21|2026-03-01T10:00:09|None|2026-03-01T10:09:00|00:00:00|02:00:00|0|CANCELLED",
    )
    # A day, an hour and five seconds; 1K nodes are 1024; no limit: as long as it ran.
    assert found == Workload(
        jobs=(
            TraceJob(0.0, 8, 3600.0, 7200.0, 1200.0),
            TraceJob(5.0, 1024, 90005.0, 90005.0, 0.0),
        ),
        left_out=3,
    )


def test_sacct_with_other_fields(tmp_path: Path) -> None:
    # Minutes in TimelimitRaw; 300 CPUs of 128 a node are 3 nodes; unix seconds.
    found = read(
        tmp_path,
        "JobIDRaw|Submit|Start|End|TimelimitRaw|AllocCPUS",
        "5|1000|1100|1160|30|300",
        node_cores=128,
    )
    assert found.jobs == (TraceJob(0.0, 3, 60.0, 1800.0, 100.0),)
    found = read(tmp_path, "JobID|Submit|ElapsedRaw|NNodes", "5|1000|75|2")
    assert found.jobs == (TraceJob(0.0, 2, 75.0, 75.0, None),)


def test_rows_of_sacct_that_can_not_be_read_are_shown(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        FIELDS,
        "1|1000|1010|1020|00:00:10|01:00|1|COMPLETED",
        "2|1000|990|1020|00:00:30|01:00|1|COMPLETED",
        "3|yesterday|1010|1020|00:00:10|01:00|1|COMPLETED",
        "4|1000|1010|1020|soon|01:00|1|COMPLETED",
        "5|1000|1010|1020|00:00:10|01:00|many|COMPLETED",
        "6|1000|1010",
    )
    assert found.unreadable == (
        (3, "its wait is negative, -10"),
        (4, "'yesterday' is no time"),
        (5, "'soon' is no duration"),
        (6, "'many' is no number"),
        (7, "it has 3 fields, not 8: '6|1000|1010'"),
    )
    assert len(found.jobs) == 1


@pytest.mark.parametrize(
    ("header", "lacks"),
    [
        ("JobID|Start|End|AllocNodes", "Submit"),
        ("JobID|Submit|End|AllocNodes", "Elapsed or ElapsedRaw or Start with End"),
        ("JobID|Submit|Elapsed", "AllocNodes or NNodes or ReqNodes or AllocCPUS"),
        ("Submit|Elapsed|NNodes", "JobID or JobIDRaw"),
        ("17|2026-03-01T10:00:00|8", "JobID or JobIDRaw"),
    ],
)
def test_a_missing_field_is_named(tmp_path: Path, header: str, lacks: str) -> None:
    with pytest.raises(SimulationError, match=f"line 1: there is no field {lacks}") as (
        raised
    ):
        read(tmp_path, header, "1|2|3|4")
    assert SACCT in str(raised.value.hint)


def test_the_command_that_is_advised_writes_what_can_be_read(tmp_path: Path) -> None:
    header = SACCT.partition("--format=")[2].replace(",", "|")
    row = "1|1000|1010|1020|00:00:10|01:00|1|COMPLETED"
    assert len(read(tmp_path, header, row).jobs) == 1


def test_qstat_of_a_real_server(tmp_path: Path) -> None:
    # 13 jobs, of which 5 were deleted before they began. Submission, start and the
    # walltimes used and asked, as they stand in the file; the fourth was ended 27 s too
    # late, which counts as its 10.
    found = read(tmp_path, golden("pbs/qstat_x_f_json.json"))
    assert found.jobs == (
        TraceJob(0.0, 1, 5.0, 30.0, 0.0),
        TraceJob(2.0, 2, 5.0, 30.0, 4.0),
        TraceJob(42.0, 2, 11.0, 60.0, 0.0),
        TraceJob(42.0, 2, 10.0, 10.0, 12.0),
        TraceJob(77.0, 2, 5.0, 120.0, 15.0),
        TraceJob(96.0, 1, 3.0, 120.0, 2.0),
        TraceJob(149.0, 2, 5.0, 120.0, 0.0),
        TraceJob(156.0, 2, 2.0, 120.0, 0.0),
    )
    assert (found.left_out, found.unreadable) == (5, ())


def qstat(folder: Path, **changes: object) -> Workload:
    good = {
        "job_state": "F",
        "ctime": "Sun Nov 22 11:20:00 2026",
        "stime": "Sun Nov 22 11:21:00 2026",
        "Resource_List": {"ncpus": 100, "walltime": "01:00:00"},
        "resources_used": {"walltime": "00:10:00"},
    }
    jobs = {"1.vm": good, "2.vm": {**good, **changes}}
    text = json.dumps({"pbs_version": "23", "Jobs": jobs}, indent=1)
    return read(folder, text, node_cores=32)


def test_processors_of_qstat_are_counted_as_nodes(tmp_path: Path) -> None:
    found = qstat(tmp_path)
    assert found.jobs == (TraceJob(0.0, 4, 600.0, 3600.0, 60.0),) * 2


def test_jobs_of_qstat_that_run_still_are_left_out(tmp_path: Path) -> None:
    assert qstat(tmp_path, job_state="R").left_out == 1


def test_jobs_of_qstat_that_can_not_be_read_are_shown(tmp_path: Path) -> None:
    found = qstat(tmp_path, stime="Sun Nov 22 11:19:00 2026")
    # Two lines, and 13 lines of the first job, come before the second.
    assert found.unreadable == ((16, "its wait is negative, -60"),)
    found = qstat(tmp_path, resources_used={"walltime": "long"})
    assert found.unreadable == ((16, "'long' is no duration"),)


def test_other_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="not that of `qstat`"):
        read(tmp_path, '{"jobs": []}')
