import asyncio
import os
import sys
import time

import psutil
import pytest
from runs import until

from hansa.mover.process import run


def go(argv, **options):
    return asyncio.run(run(argv, **options))


def test_what_a_command_leaves_behind():
    done = go(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin=b"in")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "oops\n")


def test_odd_bytes_are_no_trouble():
    assert go(["printf", r"a\377b"]).stdout == "a�b"


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="no-such"):
        go([str(tmp_path / "no-such")])


def test_a_child_in_the_background_is_not_waited_for():
    began = time.monotonic()
    assert go(["sh", "-c", "sleep 3 & echo done"]).stdout == "done\n"
    assert time.monotonic() - began < 2.5


def writes_pid(path):
    return ["sh", "-c", f"echo $$ > {path}; exec sleep 60"]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def test_it_ends_in_time(tmp_path):
    with pytest.raises(TimeoutError):
        go(writes_pid(tmp_path / "pid"), timeout=3.0)
    assert gone(int((tmp_path / "pid").read_text()))


def test_it_ends_with_its_caller(tmp_path):
    path = tmp_path / "pid"

    async def work():
        task = asyncio.create_task(run(writes_pid(path)))
        await asyncio.to_thread(until, lambda: path.exists() and path.read_text())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert gone(int(path.read_text()))


def test_it_is_of_a_session_of_its_own():
    code = "import os; print(os.getsid(0))"
    assert int(go([sys.executable, "-c", code]).stdout) != os.getsid(0)
