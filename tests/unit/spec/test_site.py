from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hansa.core.errors import SpecError
from hansa.spec import load_site


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
    assert site.limits.model_dump() == dict.fromkeys(["nodes", "time", "jobs_in_queue"])
    assert site.environment.model_dump() == {
        "setup": (),
        "launch": "",
        "variables": {},
        "python": "python",
    }
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
limits: {nodes: 2, time: "6:00:00", jobs_in_queue: 2}
environment:
  setup: [module load conda, conda activate hansa]
  launch: "mpiexec -n {ranks} --ppn {ranks_per_node} -N {nodes}"
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
