"""The function that runs at a facility, as an endpoint runs it: from its text."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest
from runs import until

from hansa.gateway import globus_check, globus_function

REQUEST = {"schema": 1, "op": "read", "path": "`reboot`; $(reboot)"}


@pytest.fixture
def function():
    """Make the function as the endpoint does: out of the text, and nothing else."""
    space: dict[str, object] = {}
    exec(compile(globus_check.source(), "sent", "exec"), space)  # noqa: S102
    return space[globus_check.NAME]


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """Return a writer of the facility's program."""
    monkeypatch.setenv("HANSA_SITE", "/p/site.yaml")
    monkeypatch.setenv("HANSA_PROGRAM", f"sh {tmp_path}/hansa")

    def write(script: str) -> Path:
        (tmp_path / "hansa").write_text(f"cd {tmp_path}\n{script}\n")
        return tmp_path

    return write


def test_the_request_goes_by_stdin_and_the_command_line_is_fixed(function, agent):
    there = agent('cat > asked; echo "$@" > words; echo {}; echo well >&2')
    done = function(REQUEST, timeout=30)
    assert done == {
        "trouble": "",
        "returncode": 0,
        "stdout": "{}\n",
        "stderr": "well\n",
    }
    assert json.loads((there / "asked").read_text()) == REQUEST
    assert (there / "words").read_text() == "site rpc\n"


def test_it_hands_json_to_json(function, agent):
    agent("echo {}; exit 3")
    done = function(REQUEST, timeout=30)
    assert json.loads(json.dumps(done)) == done
    assert done["returncode"] == 3


def test_no_secret_reaches_the_program(function, agent, monkeypatch):
    secrets = (
        "GLOBUS_COMPUTE_CLIENT_SECRET",
        "GLOBUS_COMPUTE_CLIENT_ID",
        "HANSA_GLOBUS_CLIENT_SECRET",
        "HANSA_GLOBUS_DIR",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "Db_Password",
        "WANDB_API_KEY",
        "AZURE_STORAGE_KEY",
        "SSH_PASSPHRASE",
    )
    for name in (*secrets, "LD_LIBRARY_PATH", "SLURM_CONF", "KRB5CCNAME"):
        monkeypatch.setenv(name, f"value-of-{name}")
    there = agent("env > seen")
    function(REQUEST, timeout=30)
    seen = (there / "seen").read_text()
    assert not [name for name in secrets if name in seen]
    for name in ("LD_LIBRARY_PATH", "SLURM_CONF", "KRB5CCNAME"):
        assert f"{name}=value-of-{name}" in seen
    assert "HANSA_SITE=/p/site.yaml" in seen
    assert os.environ["HF_TOKEN"]  # the endpoint's own stay


def test_a_program_that_takes_too_long_is_ended_with_its_children(function, agent):
    there = agent("sleep 600 & echo $! > child; echo early; wait")
    began = time.monotonic()
    done = function(REQUEST, timeout=3.0)
    assert (done["trouble"], done["stdout"]) == ("slow", "early\n")
    assert time.monotonic() - began < 120
    child = int((there / "child").read_text())
    until(lambda: dead(child), 60)


@pytest.mark.parametrize("endless", [float("nan"), float("inf"), 1e300])
def test_nobody_can_ask_for_an_endless_time(function, agent, monkeypatch, endless):
    monkeypatch.setitem(function.__globals__, "LONGEST_S", 0.2)
    agent("exec sleep 600")
    assert function(REQUEST, timeout=endless)["trouble"] == "slow"


def test_a_program_that_will_not_go_is_killed(function, agent, monkeypatch):
    monkeypatch.setitem(function.__globals__, "GRACE_S", 0.2)
    agent("trap '' TERM; while :; do sleep 0.05; done")
    done = function(REQUEST, timeout=2.0)
    assert done["trouble"] == "slow"
    assert done["returncode"] == -9


def dead(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_the_program_leaves_running_is_not_waited_for(function, agent):
    there = agent("sleep 600 & echo $! > child; echo {}")
    done = function(REQUEST, timeout=60)
    child = psutil.Process(int((there / "child").read_text()))
    try:
        assert (done["trouble"], done["stdout"]) == ("", "{}\n")
        assert child.is_running()
    finally:
        child.kill()


def test_a_program_that_prints_without_end_is_ended(function, agent):
    agent("yes 12345678901234567890")
    done = function(REQUEST, timeout=60)
    assert done["trouble"] == "loud"
    assert len(done["stdout"]) == globus_function.STDOUT_LIMIT


def test_long_words_are_cut_at_the_front(function, agent):
    agent("head -c 300000 /dev/zero | tr '\\0' x >&2; echo end >&2; echo {}")
    done = function(REQUEST, timeout=60)
    assert (done["trouble"], done["stdout"]) == ("", "{}\n")
    assert len(done["stderr"]) == globus_function.STDERR_LIMIT
    assert done["stderr"].endswith("xend\n")


def test_a_request_that_waited_too_long_is_dropped(function, agent):
    there = agent("touch ran")
    assert function(REQUEST, timeout=9, expires=time.time() - 5)["trouble"] == "expired"
    assert not (there / "ran").exists()
    assert function(REQUEST, timeout=9, expires=time.time() + 60)["trouble"] == ""
    assert (there / "ran").exists()


def test_without_a_site_file_nothing_is_run(function, agent, monkeypatch):
    there = agent("touch ran")
    monkeypatch.delenv("HANSA_SITE")
    assert function(REQUEST, timeout=9)["trouble"] == "unset"
    assert not (there / "ran").exists()


def test_a_missing_program_is_named(function, agent, monkeypatch):
    agent("")
    monkeypatch.setenv("HANSA_PROGRAM", "/no/hansa")
    done = function(REQUEST, timeout=9)
    assert done["trouble"] == "missing"
    assert done["stderr"] == "/no/hansa: No such file or directory"


def test_the_text_is_small_and_asks_for_nothing_but_python():
    text = globus_check.source()
    assert len(text) < 10_000
    imports = [one for one in text.splitlines() if one.startswith(("import", "from"))]
    allowed = (
        "__future__ contextlib json os shlex signal subprocess tempfile time typing"
    )
    assert {one.split()[1] for one in imports} == set(allowed.split())
