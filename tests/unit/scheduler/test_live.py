"""The drivers against a real Slurm, and against the emulator of PBS over one."""

import json

import psutil
import pytest
from batch_samples import golden
from pbs import PbsServer
from slurm import Cluster, require_slurm

from hansa.core.errors import SchedulerError
from hansa.scheduler.base import JobSpec, JobState
from hansa.scheduler.pbs import PbsOptions, PbsScheduler
from hansa.scheduler.slurm import SlurmOptions, SlurmScheduler
from hansa.site.batch import Batch

pytestmark = pytest.mark.integration


class Place:
    """A batch system with its driver."""

    def __init__(self, driver, cluster, root) -> None:
        self.driver, self.cluster, self.root = driver, cluster, root
        self.batch = Batch(driver)

    def script(self, name="train-0001-a-1.1", does="exec sleep 300", **fields):
        usual = {
            "name": f"hansa.r.{name}",
            "nodes": 1,
            "time_s": 600.0,
            "command": ["/bin/sh", "-c", does],
            "directory": self.root,
            "log": self.root / f"{name}.log",
        }
        path = self.root / f"{name}.sh"
        path.write_text(self.driver.render(JobSpec(**{**usual, **fields})))
        return path

    def submit(self, **fields) -> str:
        return self.batch.submit(self.script(**fields))

    def job(self, ident):
        return self.batch.jobs([ident])[ident]

    def until(self, ident, holds):
        seen = []

        def asked() -> bool:
            seen.append(self.job(ident))
            return holds(seen[-1])

        self.cluster.until(asked, 60, f"job {ident}")
        return seen[-1]

    def running(self, ident):
        return self.until(ident, lambda job: job.state is JobState.RUNNING)


@pytest.fixture
def slurm(tmp_path):
    require_slurm()
    with Cluster(tmp_path, "alpha", nodes=2) as cluster:
        options = SlurmOptions(conf=cluster.conf)
        yield Place(SlurmScheduler(options, tmp_path), cluster, tmp_path)


@pytest.fixture
def pbs(tmp_path):
    require_slurm()
    with PbsServer(tmp_path, "beta", accounts=("PROJ",), max_queued=2) as server:
        options = PbsOptions.model_validate(server.options)
        yield Place(PbsScheduler(options, tmp_path), server.cluster, tmp_path)


def test_a_preempted_job_is_put_back_and_says_so(slurm):
    ident = slurm.submit(nodes=2, directives=("--exclusive",))
    started = slurm.running(ident)
    slurm.cluster.submit("true", "--nodes=2", "--exclusive", "--partition=high")
    back = slurm.until(ident, lambda job: job.restarts == 1)
    again = slurm.running(ident)
    assert back.state in (JobState.QUEUED, JobState.RUNNING)  # it waits for seconds
    assert (back.started is None) == (back.state is JobState.QUEUED)
    assert (again.restarts, again.name) == (1, started.name)
    assert again.started > started.started
    attempts = slurm.root / "train-0001-a-1.1.log"
    assert attempts.exists()


def test_a_node_that_goes_down(slurm):
    ident = slurm.submit(nodes=2, directives=("--no-requeue",))
    slurm.running(ident)
    slurm.cluster.set_down("alpha2")
    lost = slurm.until(ident, lambda job: job.state.final)
    assert (lost.state, lost.why) == (JobState.NODE_FAIL, "A node of it failed.")
    slurm.cluster.set_up("alpha2")
    slurm.running(slurm.submit(nodes=2))


def test_a_held_job(slurm):
    ident = slurm.submit(directives=("--hold",))
    job = slurm.job(ident)
    assert (job.state, job.reason) == (JobState.HELD, "JobHeldUser")
    slurm.cluster.run("scontrol", "release", ident)
    slurm.running(ident)


def test_a_controller_that_dies_and_comes_back(slurm):
    ident = slurm.submit()
    slurm.running(ident)
    slurm.cluster.kill_controller()
    with pytest.raises(SchedulerError, match="looking for jobs") as caught:
        slurm.job(ident)
    assert caught.value.transient
    slurm.cluster.start_controller()
    assert slurm.running(ident).restarts == 0


def test_refusals_of_slurm(slurm):
    with pytest.raises(SchedulerError, match="Invalid partition") as caught:
        slurm.submit(queue="nope")
    assert not caught.value.transient
    assert "no such queue" in caught.value.hint
    with pytest.raises(SchedulerError, match="configuration is not available"):
        slurm.batch.accepts(slurm.script(nodes=9))


def test_ranks_are_started_by_srun(slurm):
    does = "echo $SLURM_PROCID $SLURMD_NODENAME"
    ident = slurm.submit(nodes=2, ranks_per_node=2, launch="srun", does=does)
    slurm.until(ident, lambda job: job.state is JobState.DONE)
    lines = (slurm.root / "train-0001-a-1.1.log").read_text().splitlines()
    assert sorted(lines) == ["0 alpha1", "1 alpha1", "2 alpha2", "3 alpha2"]


def test_a_cluster_leaves_nothing_behind(tmp_path):
    require_slurm()
    with Cluster(tmp_path, "alpha", nodes=1) as cluster:
        job = cluster.submit("sleep 4711.1 & setsid sleep 4711.2 & wait")
        cluster.wait(job, "RUNNING")
        folder = cluster.dir
    assert not folder.exists()
    assert (tmp_path / "alpha" / "log" / "slurmctld.log").exists()
    listed = psutil.process_iter(["cmdline", "status"])
    alive = [
        " ".join(process.info["cmdline"] or [])
        for process in listed
        if process.info["status"] != psutil.STATUS_ZOMBIE
    ]
    assert not [line for line in alive if "sleep 4711" in line or str(folder) in line]


# --- PBS ----------------------------------------------------------------------------


def test_the_emulator_says_nothing_that_a_real_pbs_does_not_say(pbs):
    ident = pbs.submit(account="PROJ", does="true")
    pbs.until(ident, lambda job: job.state is JobState.DONE)
    command = next(pbs.driver.jobs())
    told = json.loads(pbs.cluster.run(*command))["Jobs"][ident]
    real = json.loads(golden("pbs/qstat_x_f_json.json"))["Jobs"]
    known = set().union(*real.values())
    assert told.keys() - {"Account_Name"} <= known
    done = next(job for job in real.values() if job.get("Exit_status") == 0)
    assert type(told["Exit_status"]) is type(done["Exit_status"])
    assert len(told["stime"].split()) == len(done["stime"].split())


def test_refusals_of_pbs(pbs):
    with pytest.raises(SchedulerError, match="Invalid Account") as caught:
        pbs.submit(account="OTHER")
    assert "job.account" in caught.value.hint
    with pytest.raises(SchedulerError, match="Unknown queue"):
        pbs.batch.accepts(pbs.script(account="PROJ", queue="nope"))
    pbs.submit(account="PROJ")
    pbs.submit(account="PROJ", name="train-0002-a-1.1")
    with pytest.raises(SchedulerError, match="per-user limit") as caught:
        pbs.submit(account="PROJ", name="train-0003-a-1.1")
    assert caught.value.transient


def test_a_pbs_job_has_what_pbs_gives_it(pbs):
    does = 'echo $PBS_JOBID; cat $PBS_NODEFILE; env | grep -c "^SLURM"; exit 0'
    ident = pbs.submit(account="PROJ", nodes=2, does=does)
    pbs.until(ident, lambda job: job.state is JobState.DONE)
    log = (pbs.root / "train-0001-a-1.1.log").read_text()
    assert log.split() == [ident, "beta1", "beta2", "0"]


def test_a_pbs_job_that_is_put_back(pbs):
    ident = pbs.submit(account="PROJ", nodes=2)
    pbs.running(ident)
    pbs.cluster.submit("true", "--nodes=2", "--exclusive", "--partition=high")
    back = pbs.until(ident, lambda job: job.restarts == 1)
    assert back.state in (JobState.QUEUED, JobState.RUNNING)
