"""`hansa site init`, `check` and `rpc`, in this process."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hansa.cli.app import app
from hansa.core.errors import SpecError, UsageError
from hansa.site import rpc
from hansa.spec import load_profile, load_site, profile_names
from hansa.spec.site_text import SiteWish, plain_profile, site_text
from hansa.spec.yaml import parse


def hansa(*words, stdin=None):
    result = CliRunner().invoke(app, list(map(str, words)), input=stdin)
    failed = result.exception
    if failed is not None and not isinstance(failed, SystemExit):
        raise failed
    return result


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(
        f"name: here\nscheduler: local\nmailbox: {tmp_path}/mail\n"
        "tasks: {digits: {}}\n"
    )
    return path


# --- init -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile_names())
def test_the_file_says_what_the_profile_says(tmp_path, name):
    path = tmp_path / "site.yaml"
    hansa("site", "init", "--profile", name, "--name", "x", "-o", path)
    site, profile = load_site(path), load_profile(name)
    environment = site.environment
    assert site.scheduler.type == profile.scheduler.type
    assert set(profile.scheduler.options.items()) <= set(site.scheduler.options.items())
    assert environment.launch == (profile.launch.text if profile.launch else "")
    assert environment.directives == tuple(one.text for one in profile.directives)
    assert environment.setup == tuple(one.text for one in profile.setup)
    assert environment.variables == {one.name: one.value for one in profile.variables}
    assert (site.node.gpus, site.node.ranks) == (
        profile.node.visible,
        profile.node.ranks,
    )
    assert site.node.gpu_memory == profile.node.gpu_memory
    text = " ".join(path.read_text().replace("# ", " ").split())
    for fact in (*profile.directives, *profile.setup, *profile.variables):
        assert " ".join(fact.why.split()) in text
        assert all(profile.documents[name] in text for name in fact.source)


def test_an_existing_file_is_left_as_it_is(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("mine")
    with pytest.raises(UsageError, match="left as it is"):
        hansa("site", "init", "--profile", "local", "-o", path)
    assert path.read_text() == "mine"


def test_what_is_given_stands_in_the_file(tmp_path):
    path = tmp_path / "site.yaml"
    words = ["--profile", "alcf/polaris", "--name", "east", "--mailbox", "/p/mail"]
    words += ["--state", "/p/state", "--task", "chem-instruct=/p/a b: c"]
    hansa("site", "init", *words, "--task", "digits", "--project", "MINE", "-o", path)
    site = load_site(path)
    assert site.name == "east"
    assert (str(site.mailbox), str(site.state)) == ("/p/mail", "/p/state")
    assert str(site.tasks["chem-instruct"].data) == "/p/a b: c"
    assert site.tasks["digits"].data is None
    assert "/MINE/" in site.environment.python
    assert "PROJ" not in path.read_text()


def test_what_is_left_to_fill_in_is_said(tmp_path):
    path = tmp_path / "site.yaml"
    hansa("site", "init", "--profile", "nersc/perlmutter", "-o", path)
    assert "Still to be filled in: PROJ and USER." in path.read_text()
    path.unlink()
    words = ["--profile", "nersc/perlmutter", "--project", "m1", "--user", "kim"]
    hansa("site", "init", *words, "-o", path)
    assert "filled in" not in path.read_text()
    assert str(load_site(path).mailbox) == "/pscratch/sd/k/kim/hansa/mailbox"


@pytest.mark.parametrize(
    ("command", "scheduler"), [("sbatch", "slurm"), ("qsub", "pbs"), ("no", "local")]
)
def test_without_a_profile_it_looks_around(tmp_path, monkeypatch, command, scheduler):
    def which(name):
        return f"/bin/{name}" if name == command else None

    monkeypatch.setattr(shutil, "which", which)
    path = tmp_path / "site.yaml"
    result = hansa("site", "init", "--name", "x", "-o", path)
    assert load_site(path).scheduler.type == scheduler
    assert "ound" in result.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [("sbatch", "[--exclusive,"), ("qsub", "place: scatter:excl")],
)
def test_shared_nodes_are_thought_of(tmp_path, monkeypatch, command, told):
    monkeypatch.setattr(shutil, "which", lambda name: name if name == command else None)
    path = tmp_path / "site.yaml"
    hansa("site", "init", "--name", "x", "-o", path)
    (line,) = (one for one in path.read_text().splitlines() if told in one)
    assert line.strip().startswith("#")


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"no/site\.yaml can't be written") as caught:
        hansa("site", "init", "--profile", "local", "-o", tmp_path / "no/site.yaml")
    assert "-o" in str(caught.value.hint)


@pytest.mark.parametrize("words", [[], ["run"], ["site"], ["site", "init"]])
def test_help_is_short_too(words):
    assert "Usage: " in hansa(*words, "-h").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--name"),
        (["--name", "x", "--task", "digit"], "digits"),
        (["--profile", "alcf/polarys"], "alcf/polaris"),
        (["--name", "No Name"], "1 to 32"),
    ],
)
def test_mistakes_are_told_with_the_right_word(tmp_path, words, told):
    with pytest.raises((UsageError, SpecError)) as caught:
        hansa("site", "init", *words, "-o", tmp_path / "site.yaml")
    assert told in str(caught.value.hint)
    assert not (tmp_path / "site.yaml").exists()


paths = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)


@given(mailbox=paths, data=paths)
def test_any_path_reads_back(mailbox, data):
    wish = SiteWish(name="x", mailbox=mailbox, tasks={"digits": data})
    text = site_text(plain_profile("local", "a machine"), wish)
    read = parse(text, "site.yaml", "site").data
    assert read["mailbox"] == mailbox
    assert read["tasks"]["digits"]["data"] == data


# --- check ----------------------------------------------------------------------------


def test_a_healthy_site_is_ready(site):
    result = hansa("site", "check", "--site", site)
    assert result.exit_code == 0
    assert "all ready" in result.stdout
    assert "ok: local" in result.stdout


def test_a_problem_is_shown_with_its_remedy(site, tmp_path):
    (tmp_path / "mail").write_text("in the way")
    result = hansa("site", "check", "--site", site)
    assert result.exit_code == 3
    assert "mailbox: problem: The mailbox" in result.stdout
    assert "help: Name a directory in `mailbox`" in result.stdout
    data = json.loads(hansa("site", "check", "--site", site, "--json").stdout)
    assert data["exit_code"] == 3
    states = {one["check"]: one["state"] for one in data["data"]["here"]["findings"]}
    assert states["mailbox"] == "problem"
    assert states["scheduler"] == "ok"


def test_where_jobs_need_a_block_none_is_tried_from_the_login_node(site, tmp_path):
    text = site.read_text()
    assert "scheduler: local" in text
    site.write_text(text.replace("scheduler: local", "scheduler: {type: block}"))
    assert hansa("site", "check", "--site", site).exit_code == 0
    result = hansa("site", "check", "--site", site, "--submit")
    assert result.exit_code == 3
    assert "trial job: problem: No job can be tried from here" in result.stdout
    assert "hansa check FEDERATION.yaml --submit" in result.stdout
    assert not list(tmp_path.glob("**/block/1"))


def test_a_missing_site_file_is_a_sentence(tmp_path):
    with pytest.raises(SpecError, match="no file"):
        hansa("site", "check", "--site", tmp_path / "nowhere.yaml")


# --- rpc ------------------------------------------------------------------------------


def answer(site, text):
    result = hansa("site", "rpc", "--site", site, stdin=text)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_rpc_answers_one_request(site):
    assert answer(site, json.dumps(rpc.probe()))["data"]["facility"] == "here"


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"op": "dance"}'])
def test_rpc_refuses_nonsense_as_a_reply(site, text):
    reply = answer(site, text)
    assert reply["ok"] is False
    assert reply["error"]["code"] == "USAGE"


@pytest.mark.parametrize("asked", ["rsync --server .", "/usr/bin/rsync --server"])
def test_rpc_is_no_rsync(site, monkeypatch, asked):
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", asked)
    result = hansa("site", "rpc", "--site", site, stdin="")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "this key runs `hansa site rpc` only, not " in result.stderr


def test_rpc_replies_even_if_the_site_file_is_wrong(tmp_path):
    assert answer(tmp_path / "no.yaml", "{}")["error"]["code"] == "SPEC_INVALID"
