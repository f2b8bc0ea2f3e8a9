import os
import sys
from pathlib import Path

import pytest
from paper_facility import site_spec

from hansa.core.errors import SchedulerError
from hansa.site import rpc
from hansa.site.agent import Agent
from hansa.site.batch import run_command, run_in


def test_a_command_runs_without_a_shell_and_in_english():
    program = "import os, sys; print(sys.argv[1], os.environ['LC_ALL']); sys.exit(3)"
    answer = run_command([sys.executable, "-c", program, "$HOME;ls"], 20)
    assert (answer.returncode, answer.stdout) == (3, "$HOME;ls C\n")


def test_output_that_is_no_text_is_no_crash():
    answer = run_command(["printf", r"a\377b"], 20)
    assert answer.stdout == "a\ufffdb"


def test_commands_run_in_a_folder_once_it_is_there(tmp_path):
    run = run_in(tmp_path / "state")
    assert run(["pwd"], 20).stdout == f"{Path.cwd()}\n"
    (tmp_path / "state").mkdir()
    assert run(["pwd", "-P"], 20).stdout == f"{(tmp_path / 'state').resolve()}\n"


def test_a_site_asks_its_batch_system_from_its_state_folder(tmp_path):
    fake = tmp_path / "squeue"
    fake.write_text('#!/bin/sh\npwd -P >"$0.cwd"\necho \'{"jobs": []}\'\n')
    fake.chmod(0o755)
    site = site_spec(tmp_path, scheduler={"type": "slurm", "bin": str(tmp_path)})
    site.state.mkdir(parents=True, exist_ok=True)
    assert Agent(site).handle(rpc.probe())["ok"]
    asked_in = (tmp_path / "squeue.cwd").read_text()
    assert asked_in == f"{site.state.resolve()}\n"


def test_a_missing_program_is_lasting():
    with pytest.raises(SchedulerError, match=r"sbatchx.*can't be started") as caught:
        run_command(["sbatchx"], 20)
    assert not caught.value.transient


def test_the_program_behind_its_settings_is_named():
    command = ["env", "-u", "SQUEUE_NAMES", "SLURM_CONF=/x", "/no/such/squeue"]
    assert run_command(command, 20).returncode == 127
    slow = ["env", "-u", "A", "B=c", sys.executable, "-c", "import time; time.sleep(9)"]
    with pytest.raises(SchedulerError, match=f"`{sys.executable}` has not answered"):
        run_command(slow, 0.3)


@pytest.mark.integration
def test_a_hanging_program_is_transient(tmp_path):
    with pytest.raises(SchedulerError, match="not answered") as caught:
        run_command(["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"], 3.0)
    assert caught.value.transient
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
