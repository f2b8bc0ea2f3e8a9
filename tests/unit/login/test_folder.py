"""Where a login is kept: modes, places, writers that meet or die."""

import json
import os
import stat
import threading

import pytest
from globus_auth import APP, CLIENT, TRANSFER

from hansa.core.errors import LoginError
from hansa.login import clients, folder
from hansa.login.tokens import Tokens


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_and_all_files_are_closed_to_others(auth, log_in):
    before = os.umask(0)
    try:
        log_in()
    finally:
        os.umask(before)
    assert mode(folder.path()) == 0o700
    files = {one.name: mode(one) for one in folder.path().iterdir()}
    assert files == {"client.json": 0o600, "tokens.local.json": 0o600, "lock": 0o600}


def test_writing_tokens_leaves_the_umask_alone(auth, log_in, tmp_path, monkeypatch):
    def forbidden(mask):
        raise AssertionError(f"umask({mask:o}) is for every thread of the process")

    monkeypatch.setattr(os, "umask", forbidden)
    log_in()
    assert mode(folder.tokens_path()) == 0o600


@pytest.mark.parametrize("name", [".", "tokens.local.json", "client.json"])
def test_what_others_can_read_is_refused(auth, log_in, name):
    log_in()
    loose = folder.path() / name
    loose.chmod(mode(loose) | 0o050)
    with pytest.raises(LoginError, match="Others can get at") as caught:
        clients.transfer_client()
    command = f"chmod -R go= {folder.path()}"
    assert f"`{command}`" in caught.value.hint
    assert "hansa logout" in caught.value.hint
    assert os.system(command) == 0  # noqa: S605 - the very command of the hint
    clients.transfer_client()


def test_a_file_of_another_user_is_refused(auth, log_in, monkeypatch):
    log_in()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(LoginError, match="belongs to another user"):
        clients.transfer_client()


def test_the_folder_is_the_named_one_else_that_of_the_desktop_rules(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("HANSA_GLOBUS_DIR", str(tmp_path / "here"))
    assert folder.path() == tmp_path / "here"
    monkeypatch.delenv("HANSA_GLOBUS_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert folder.path() == tmp_path / "config" / "hansa" / "globus"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder.path() == tmp_path / ".config" / "hansa" / "globus"


def test_a_client_id_is_remembered_for_its_environment(auth, monkeypatch):
    folder.remember_client_id(CLIENT)
    monkeypatch.setenv("GLOBUS_SDK_ENVIRONMENT", "production")
    assert folder.read_client_id() is None
    folder.remember_client_id(APP)
    monkeypatch.setenv("GLOBUS_SDK_ENVIRONMENT", "local")
    assert folder.read_client_id() == CLIENT


def test_a_damaged_file_of_client_ids_is_named(auth):
    folder.make()
    file = folder.path() / "client.json"
    file.write_text("[1")
    file.chmod(0o600)
    with pytest.raises(LoginError, match=r"client\.json is damaged"):
        folder.read_client_id()


def test_an_environment_that_is_a_path_is_refused(auth, monkeypatch):
    monkeypatch.setenv("GLOBUS_SDK_ENVIRONMENT", "../../elsewhere")
    with pytest.raises(LoginError, match="no environment"):
        folder.tokens_path()


def test_a_writer_that_fails_leaves_the_old_file(auth, log_in):
    log_in()
    before = folder.tokens_path().read_bytes()

    def write_half():
        with folder.copy_of(folder.tokens_path()) as aside:
            aside.write_bytes(b"half")
            raise TypeError

    with pytest.raises(TypeError):
        write_half()
    assert folder.tokens_path().read_bytes() == before
    assert not list(folder.path().glob(".*"))


def test_readers_never_meet_half_a_file_and_writers_lose_nothing(auth, log_in):
    log_in()
    tokens = Tokens(CLIENT)
    one = tokens.read()[TRANSFER]
    others = [f"server-{n}" for n in range(4)]

    def write(server):
        kind = type(one)
        for _ in range(10):
            tokens.write(
                {server: kind.from_dict({**one.to_dict(), "resource_server": server})}
            )

    writers = [threading.Thread(target=write, args=(name,)) for name in others]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert TRANSFER in tokens.read()
    assert set(others) < set(tokens.read())
    assert json.loads(folder.tokens_path().read_text())["format_version"] == "2.0"
