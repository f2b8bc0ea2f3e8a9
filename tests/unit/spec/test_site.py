from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.spec import SiteSpec, load_site


def wrong() -> list[str]:
    with pytest.raises(SpecError) as error:
        load_site("site.yaml")
    return error.value.message.splitlines()


def test_defaults_and_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    site = load_site(folder / "site.yaml")
    here = folder
    assert site.name == "bergen"
    assert site.scheduler.type == "queue"
    assert site.scheduler.options == {"slots": 1, "directory": None}
    assert site.mailbox == here / "mail"
    assert site.cache == here / "mail" / ".cache"
    assert site.tasks["parts"].data == here.parent / "numbers"
    assert site.tasks["parts"].splits == ("part-0",)
    assert site.tasks["parts"].test_splits is None
    assert site.tasks["parts"].options == {}
    assert site.modules == ()
    assert site.models == {}
    limits = ["nodes", "time", "jobs_in_queue", "linger", "queue_ahead"]
    assert site.limits.model_dump() == dict.fromkeys(limits)
    assert site.environment.model_dump() == {
        "setup": (),
        "launch": "",
        "variables": {},
        "python": "python",
        "directives": (),
    }
    assert site.state == here / ".hansa" / "bergen"
    assert site.node.model_dump() == {"gpus": 0, "gpu_memory": None, "ranks": 1}
    assert site.poll.model_dump() == {"first": 2.0, "longest": 60.0}
    assert (site.heartbeat, site.checkpoint) == (1.0, 30.0)


def test_everything_given(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    (folder / "site.yaml").write_text("""\
name: bergen
scheduler: {type: queue, slots: 4, directory: q}
mailbox: $SCRATCH/hansa
cache: ~/cache
tasks:
  parts: {data: /data, splits: [a, b], test_splits: a, options: {seed: 3}}
modules: [my.models:make_net]
models: {tiny: models/tiny}
state: $SCRATCH/own
limits: {nodes: 2, time: "6:00:00", jobs_in_queue: 2, linger: 10m, queue_ahead: 0}
node: {gpus: 4, gpu_memory: 40GB, ranks: 4}
poll: {first: 5s, longest: 2m}
environment:
  setup: [module load conda, conda activate hansa]
  launch: "mpiexec -n {ranks} --ppn {ranks_per_node} -N {nodes} bind-${{RANK}}"
  directives: [-C gpu, -l filesystems=home:eagle]
  variables: {OMP_NUM_THREADS: 8, WHERE: here}
  python: env/bin/python
heartbeat: 2
checkpoint: 1m
""")
    site = load_site("site.yaml")
    assert site.mailbox == Path("/scratch/me/hansa")
    assert site.cache == Path("/home/me/cache")
    assert site.models == {"tiny": tmp_path / "models" / "tiny"}
    assert site.environment.python == str(tmp_path / "env/bin/python")
    assert site.environment.variables == {"OMP_NUM_THREADS": "8", "WHERE": "here"}
    assert site.environment.setup == ("module load conda", "conda activate hansa")
    assert site.scheduler.options == {
        "slots": 4,
        "directory": str(tmp_path / "q"),
    }
    assert site.tasks["parts"].options == {"seed": 3}
    assert site.limits.time == 21600.0
    assert (site.limits.linger, site.limits.queue_ahead) == (600.0, 0.0)
    assert site.state == Path("/scratch/me/own")
    assert site.node.model_dump() == {"gpus": 4, "gpu_memory": 40 * 10**9, "ranks": 4}
    assert (site.poll.first, site.poll.longest) == (5.0, 120.0)
    assert site.environment.directives == ("-C gpu", "-l filesystems=home:eagle")
    launch = site.environment.launch.format(ranks=8, ranks_per_node=4, nodes=2)
    assert launch == "mpiexec -n 8 --ppn 4 -N 2 bind-${RANK}"
    assert site.modules == ("my.models:make_net",)
    assert (site.heartbeat, site.checkpoint) == (2.0, 60.0)


def test_paths_of_the_scheduler_are_expanded(
    edit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    old = "scheduler: queue"
    for text, path in (
        ("$SCRATCH/q", "/scratch/me/q"),
        ("~/q", "/home/me/q"),
        ("q", str(tmp_path / "q")),
    ):
        new = f"scheduler: {{type: queue, directory: {text}}}"
        edit(old, new, "site.yaml")
        assert load_site("site.yaml").scheduler.options["directory"] == path
        old = new
    edit(old, "scheduler: {type: queue, directory: $NOWHERE/q}", "site.yaml")
    assert wrong() == [
        "site.yaml:2: scheduler.directory: '$NOWHERE/q' names an environment variable "
        "that is not set"
    ]


def test_a_link_to_python_is_not_followed(folder: Path, edit: Any) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to("/usr/bin/env")
    edit("mailbox:", "environment: {python: bin/python}\nmailbox:", "site.yaml")
    expected = folder / "bin" / "python"
    assert load_site("site.yaml").environment.python == str(expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mailbox:",
            "mailbx:",
            "site.yaml:3: unknown key 'mailbx' in site; did you mean 'mailbox'?",
        ),
        (
            "splits: part-0",
            "split: part-0",
            "site.yaml:7: unknown key 'split' in tasks.parts; did you mean 'splits'?",
        ),
        (
            "scheduler: queue",
            "scheduler: queu",
            "site.yaml:2: There is no scheduler 'queu'. Did you mean 'queue'?",
        ),
        (
            "scheduler: queue",
            "scheduler: {type: queue, slot: 2}",
            "site.yaml:2: unknown key 'slot' in scheduler; did you mean 'slots'?",
        ),
        (
            "scheduler: queue",
            "scheduler: {slots: 2}",
            "site.yaml:2: scheduler needs the key 'type'",
        ),
        (
            "  parts:",
            "  part:",
            "site.yaml:5: there is no task 'part'; did you mean 'parts'?",
        ),
        (
            "splits: part-0",
            "options: {sed: 1}",
            "site.yaml:7: unknown key 'sed' in tasks.parts.options; "
            "did you mean 'seed'?",
        ),
        (
            "splits: part-0",
            "options: {seed: x}",
            'site.yaml:7: tasks.parts.options.seed is "x"; expected a whole number',
        ),
        (
            "mailbox: mail",
            "mailbox: $NOT_SET_ANYWHERE/mail",
            "site.yaml:3: mailbox: '$NOT_SET_ANYWHERE/mail' names an environment "
            "variable that is not set",
        ),
        ("mailbox: mail", "mailbox: 3", "site.yaml:3: mailbox is 3; expected a path"),
        (
            "mailbox: mail",
            "mailbox: mail\nmodules: [os.system]",
            "site.yaml:4: modules.0: 'os.system' is not of the form module:function",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nenvironment: {launch: 'srun -n {rank}'}",
            "site.yaml:4: environment.launch: {rank} means nothing here; use {ranks}, "
            "{ranks_per_node}, {nodes}",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nenvironment: {launch: 'srun {'}",
            "site.yaml:4: environment.launch: 'srun {' can't be filled in: "
            "Single '{' encountered in format string",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nenvironment: {variables: {'A B': x}}",
            "site.yaml:4: environment.variables.A B: 'A B' can't be the name of an "
            "environment variable",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nenvironment: {variables: {A: true}}",
            "site.yaml:4: environment.variables.A is true; expected text (in quotes if "
            "it looks like a number)",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nenvironment: {directives: '#SBATCH -C gpu'}",
            "site.yaml:4: environment.directives.0: '#SBATCH -C gpu': write what "
            "follows the prefix, as '-C gpu', without the prefix",
        ),
        (
            "mailbox: mail",
            'mailbox: mail\nenvironment: {directives: ["-C gpu\\n-q x"]}',
            "site.yaml:4: environment.directives.0: '-C gpu\\n-q x' is not one line "
            "of text",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\npoll: {first: 2m}",
            "site.yaml:4: poll: `first` must not be longer than `longest`",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\npoll: {frist: 2s}",
            "site.yaml:4: unknown key 'frist' in poll; did you mean 'first'?",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nnode: {ranks: 0}",
            "site.yaml:4: node.ranks is 0; expected a number greater than or equal "
            "to 1",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nnode: {gpu_memory: lots}",
            "site.yaml:4: node.gpu_memory: 'lots' is no size; write 4096, '26GB' or "
            "'64MiB'",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nheartbeat: 0",
            "site.yaml:4: heartbeat is 0; expected a number greater than 0",
        ),
        (
            "mailbox: mail",
            "mailbox: mail\nlimits: {time: ever}",
            "site.yaml:4: limits.time: 'ever' is no duration; write 90, '90m', "
            "'1h30m' or '1:30:00' (hours:minutes:seconds)",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_mistake_is_named_with_its_line(
    edit: Any, old: str, new: str, message: str
) -> None:
    edit(old, new, "site.yaml")
    assert message in wrong()


def test_a_task_needs_no_keys(folder: Path) -> None:
    (folder / "site.yaml").write_text(
        "name: b\nscheduler: queue\nmailbox: m\ntasks: {parts: {}}\n"
    )
    assert load_site("site.yaml").tasks["parts"].splits is None


def test_a_site_without_tasks_is_refused(folder: Path) -> None:
    (folder / "site.yaml").write_text(
        "name: b\nscheduler: queue\nmailbox: m\ntasks: {}\n"
    )
    assert any(line.startswith("site.yaml:4: tasks") for line in wrong())


@pytest.mark.parametrize(
    ("state", "mailbox"), [("mail", "mail"), ("mail/own", "mail"), ("own", "own/mail")]
)
def test_state_and_mailbox_are_apart(
    folder: Path, edit: Any, state: str, mailbox: str
) -> None:
    edit("mailbox: mail", f"mailbox: {mailbox}\nstate: {state}", "site.yaml")
    (line,) = wrong()
    assert line.startswith("site.yaml:4: the folder `state`")
    assert "must not lie in each other" in line


def test_a_mailbox_around_the_default_state_is_refused(edit: Any, folder: Path) -> None:
    edit("mailbox: mail", f"mailbox: {folder}", "site.yaml")
    assert "must not lie in each other" in wrong()[0]


@pytest.mark.parametrize(
    ("scheduler", "poll", "first", "longest"),
    [
        ({"type": "local"}, None, 0.05, 10.0),
        ("local", {"longest": "3s"}, 0.05, 3.0),
        ("slurm", {}, 2.0, 60.0),
        ({"type": "pbs"}, {"first": 7}, 7.0, 60.0),
    ],
)
def test_the_pace_depends_on_the_scheduler(
    scheduler: object, poll: object, first: float, longest: float
) -> None:
    data = {"name": "b", "mailbox": "/m", "state": "/s", "tasks": {"parts": {}}}
    site = SiteSpec.model_validate({**data, "scheduler": scheduler, "poll": poll})
    assert (site.poll.first, site.poll.longest) == (first, longest)


@pytest.mark.parametrize(
    "words", ["[python, own/train.py, --quick]", "python own/train.py --quick"]
)
def test_python_files_of_programs_are_taken_from_the_files_folder(
    folder: Path, edit: Any, words: str
) -> None:
    edit("mailbox: mail", f"mailbox: mail\nprograms: {{mine: {words}}}", "site.yaml")
    found = load_site("site.yaml").programs
    assert found == {"mine": ("python", str(folder / "own/train.py"), "--quick")}
