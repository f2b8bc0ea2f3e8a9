"""The gateway over a pretended `ssh`; over a real one see the contract tests."""

import asyncio
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hansa.core import ssh as ssh_words
from hansa.core.errors import GatewayError
from hansa.gateway.reply import last_object
from hansa.gateway.ssh import SshGateway, SshGatewayOptions
from hansa.mover import line
from hansa.site import rpc

REPLY = json.dumps(rpc.reply({"facility": "there"}))


class FakeSsh:
    """A program `ssh` that notes its arguments and answers as told."""

    def __init__(self, folder) -> None:
        self.log = folder / "calls"
        self.folder = folder
        self.says()

    def says(self, out=REPLY, err="", code=0, config="", master=255) -> None:
        text = f"""\
#!/bin/sh
printf '%s\\n' "$*" >> {self.log}
case "$*" in
  *"-G"*) echo '{config}'; exit 0;;
  *"-O check"*) exit {master};;
  *"-O stop"*) exit 0;;
esac
cat > {self.folder}/stdin
cat <<'EOF'
{out}
EOF
cat >&2 <<'EOF'
{err}
EOF
exit {code}
"""
        path = self.folder / "ssh"
        path.write_text(text)
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return FakeSsh(tmp_path)


def call(times=1, request=None, **options):
    whole = {"host": "login", "site": "/p/site.yaml", **options}

    async def work():
        gateway = SshGateway(SshGatewayOptions(**whole))
        try:
            calls = (gateway.call(request or rpc.probe(), 30.0) for _ in range(times))
            return await asyncio.gather(*calls)
        finally:
            await gateway.close()

    return asyncio.run(work())


def failing(**options) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        call(**options)
    return caught.value


def test_the_command_there_comes_from_the_options_alone(ssh):
    call(command="~/my env/bin/hansa".replace(" ", r"\ "), site="~/a b/site.yaml")
    (line,) = [one for one in ssh.calls if "site rpc" in one]
    assert line.endswith("-- login 'my env/bin/hansa' site rpc --site 'a b/site.yaml'")


def test_the_request_goes_by_stdin(ssh, tmp_path):
    request = rpc.read("r", "jobs/`reboot`/log.txt")
    call(request=request)
    assert json.loads((tmp_path / "stdin").read_text()) == request
    assert not any("reboot" in line for line in ssh.calls)


def test_a_command_may_have_arguments(ssh):
    call(command="apptainer exec hansa.sif hansa")
    assert any("login apptainer exec hansa.sif hansa site rpc" in c for c in ssh.calls)


@pytest.mark.parametrize("command", ["", "  ", "'open"])
def test_an_empty_command_is_none(command):
    with pytest.raises(ValidationError):
        SshGatewayOptions(host="h", site="s", command=command)


def test_banners_are_read_over(ssh):
    ssh.says(out=f'*** {{welcome}} ***\n{{"motd": 1}}\n{REPLY}\nGood bye {{}}')
    assert call() == [{"facility": "there"}]


def test_a_whole_reply_counts_even_if_the_line_breaks_after_it(ssh):
    ssh.says(code=255, err="Connection reset")
    assert call() == [{"facility": "there"}]


@pytest.mark.parametrize(
    ("code", "err", "transient", "hint"),
    [
        (255, "ssh: connect to host login port 22: Connection refused", True, "hand"),
        (255, "me@login: Permission denied (publickey).", False, "one-time password"),
        (255, "Host key verification failed.", False, "fingerprint"),
        (127, "bash: hansa: command not found", False, "gateway.command"),
        (126, "bash: hansa: Permission denied", False, "gateway.command"),
        (2, "No such command 'site'.", False, "site check"),
        (1, "Traceback ... ModuleNotFoundError: pydantic", True, "site check"),
        (0, "", True, "site check"),
    ],
)
def test_failures_are_told_apart(ssh, code, err, transient, hint):
    ssh.says(out="Welcome!", code=code, err=err)
    error = failing()
    assert error.transient is transient
    assert hint in error.hint
    assert (err or "no reply") in error.message


def test_many_calls_share_one_connection(ssh):
    call(times=4)
    masters = {word for one in ssh.calls for word in one.split() if "Path=" in word}
    assert len(masters) == 1
    assert sum("-O check" in one for one in ssh.calls) == 1
    assert "-O stop" in ssh.calls[-1]


def test_a_connection_that_was_there_is_left_there(ssh):
    ssh.says(master=0)
    call()
    assert not any("-O stop" in one for one in ssh.calls)


def test_the_users_own_connection_goes_first(ssh):
    ssh.says(config="controlpath /home/me/.ssh/socket")
    call()
    assert not any("ControlPath" in one for one in ssh.calls)


def test_with_a_key_of_its_own_it_takes_no_other_connection(ssh):
    ssh.says(config="controlpath /home/me/.ssh/socket")
    call(identity="/keys/commands")
    logins = [one for one in ssh.calls if "site rpc" in one]
    assert "ControlPath=/home/me" not in logins[0]
    assert "ControlPath=" in logins[0]
    assert "-i /keys/commands" in logins[0]


DENIED = "me@login: Permission denied (publickey,keyboard-interactive)."


def logins(ssh):
    return sum("site rpc" in one for one in ssh.calls)


def after_an_answer(ssh, monkeypatch, then):
    """Let one call be answered, and then the connection break."""

    async def work():
        options = SshGatewayOptions(host="login", site="/p/site.yaml")
        gateway = SshGateway(options)
        await gateway.call(rpc.probe(), 30.0)
        ssh.says(out="", err=DENIED, code=255, config="controlpath /me/socket")
        try:
            await then(gateway)
        finally:
            await gateway.close()

    ssh.says(config="controlpath /me/socket")
    asyncio.run(work())


async def refused(gateway):
    with pytest.raises(GatewayError, match="Permission denied") as caught:
        await gateway.call(rpc.probe(), 30.0)
    return caught.value


def test_a_login_that_worked_is_waited_for_and_not_hammered(ssh, monkeypatch):
    async def then(gateway):
        errors = [await refused(gateway)]
        errors += await asyncio.gather(*(refused(gateway) for _ in range(5)))
        assert all(error.transient for error in errors)
        assert all("Open it again" in error.hint for error in errors)
        assert logins(ssh) == 2
        ssh.says(master=0)  # somebody opened it by hand
        assert await gateway.call(rpc.probe(), 30.0) == {"facility": "there"}

    after_an_answer(ssh, monkeypatch, then)


def test_after_a_while_a_login_is_tried_again(ssh, monkeypatch):
    async def then(gateway):
        await refused(gateway)
        monkeypatch.setattr(ssh_words, "LOGIN_S", 0.0)
        await refused(gateway)
        assert logins(ssh) == 3

    after_an_answer(ssh, monkeypatch, then)


def test_a_login_that_never_worked_is_lasting_and_not_hammered(ssh):
    ssh.says(out="", err=DENIED, code=255)

    async def work():
        gateway = SshGateway(SshGatewayOptions(host="login", site="/p/site.yaml"))
        errors = [await refused(gateway) for _ in range(4)]
        await gateway.close()
        return errors

    assert not any(error.transient for error in asyncio.run(work()))
    assert logins(ssh) == 1


def test_a_configuration_that_hangs_is_transient(ssh, monkeypatch):
    monkeypatch.setattr(line, "_LOCAL_S", 0.2)
    (ssh.folder / "ssh").write_text("#!/bin/sh\nexec sleep 30\n")
    error = failing()
    assert error.transient
    assert "ssh -G" in error.message
    assert "Match exec" in error.hint


def test_without_ssh_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    error = failing()
    assert not error.transient
    assert "OpenSSH" in error.hint


def test_a_folder_that_others_may_read_is_refused(ssh, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        Path(short, "hansa").mkdir()
        Path(short, "hansa").chmod(0o755)
        error = failing()
    assert "private" in error.message
    assert not error.transient


json_objects = st.dictionaries(st.text(), st.none() | st.integers() | st.text())


@given(st.lists(st.text()), json_objects, st.lists(st.sampled_from(["", "bye", "1"])))
def test_the_last_object_is_the_reply(before, reply, after):
    lines = [line.replace("\n", " ") for line in before]
    text = "\n".join([*lines, json.dumps(reply), *after])
    assert last_object(text) == reply


@given(st.text())
def test_any_text_is_read(text):
    found = last_object(text)
    assert found is None or isinstance(found, dict)
