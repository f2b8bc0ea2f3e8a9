"""What is special to rsync; the rest is in the contract tests."""

import asyncio
import hashlib
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import ports
import pytest
import sshd

from hansa.core.errors import StorageFull, TransferError
from hansa.core.files import FileRecord
from hansa.core.ssh import SshOptions
from hansa.mover import line as mover_line
from hansa.mover.base import Place
from hansa.mover.line import Line
from hansa.mover.process import Finished
from hansa.mover.rsync import RsyncMover, RsyncOptions, failure

DATA = os.urandom(400_000)
FILES = {
    "a.safetensors": FileRecord(
        bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest()
    )
}
PLACE = "r/versions/0"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    sshd.need("sshd", "ssh", "rsync")
    made = sshd.Sshd.make(tmp_path_factory.mktemp("rsync") / "sshd")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def source(tmp_path):
    return fill(tmp_path / "server")


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(DATA)
    (folder / "manifest.json").write_text("{}")
    return folder


def do(server, mailbox, verb, *arguments, **options):
    async def work():
        whole = RsyncOptions(**{**server.options, **options})
        mover = RsyncMover(whole, Place(mailbox=mailbox))
        try:
            return await getattr(mover, verb)(*arguments)
        finally:
            await mover.close()

    return asyncio.run(work())


def put(server, source, mailbox, **options):
    return do(server, mailbox, "put", source, PLACE, FILES, **options)


def damage(target):
    (target / "a.safetensors").chmod(0o644)
    (target / "a.safetensors").write_bytes(b"X" + DATA[1:])


def remove(target):
    (target / "a.safetensors").unlink()


@pytest.mark.parametrize("spoil", [damage, remove])
def test_a_damaged_target_is_mended(server, source, tmp_path, spoil):
    target = tmp_path / "mail" / PLACE
    put(server, source, tmp_path / "mail")
    spoil(target)
    moved = put(server, source, tmp_path / "mail")
    assert moved.bytes > 0
    assert (target / "a.safetensors").read_bytes() == DATA
    assert (target / "a.safetensors").stat().st_mode & 0o222 == 0
    assert put(server, source, tmp_path / "mail").bytes == 0


def test_damage_without_a_manifest_is_seen_too(server, source, tmp_path):
    """Same size and time: only reading it back tells."""
    target = tmp_path / "mail" / PLACE
    put(server, source, tmp_path / "mail")
    (target / "manifest.json").unlink()
    before = (target / "a.safetensors").stat().st_mtime
    damage(target)
    os.utime(target / "a.safetensors", (before, before))
    put(server, source, tmp_path / "mail")
    assert (target / "a.safetensors").read_bytes() == DATA


def test_a_broken_put_goes_on_where_it_was(server, source, tmp_path):
    partial = tmp_path / "mail" / PLACE / ".rsync-partial"
    partial.mkdir(parents=True)
    (partial / "a.safetensors").write_bytes(DATA[:300_000])
    assert put(server, source, tmp_path / "mail").bytes < 150_000
    assert not partial.exists()


def test_a_broken_get_goes_on_where_it_was(server, tmp_path):
    fill(tmp_path / "mail" / PLACE)
    partial = tmp_path / ".update.arriving/.rsync-partial"
    partial.mkdir(parents=True)
    (partial / "a.safetensors").write_bytes(DATA[:300_000])
    target = tmp_path / "update"
    moved = do(server, tmp_path / "mail", "get", PLACE, target, FILES)
    assert 0 < moved.bytes < 150_000
    assert (target / "a.safetensors").read_bytes() == DATA
    assert sorted(path.name for path in target.iterdir()) == [*FILES, "manifest.json"]


def test_left_overs_of_an_older_update_do_not_spoil_a_get(server, tmp_path):
    mail, target = tmp_path / "mail", tmp_path / "update"
    stamp = fill(mail / PLACE) / "a.safetensors"
    aside = tmp_path / ".update.arriving"
    aside.mkdir()
    (aside / "old").write_text("x")
    (aside / "a.safetensors").write_bytes(b"X" + DATA[1:])
    times = stamp.stat().st_mtime
    os.utime(aside / "a.safetensors", (times, times))
    with pytest.raises(TransferError, match="not what its manifest promises"):
        do(server, mail, "get", PLACE, target, FILES)
    assert not aside.exists()
    do(server, mail, "get", PLACE, target, FILES)
    assert (target / "a.safetensors").read_bytes() == DATA


def test_a_file_larger_than_promised_is_not_fetched(server, tmp_path):
    fill(tmp_path / "mail" / PLACE)
    small = {"a.safetensors": FileRecord(bytes=10, sha256="0" * 64)}
    with pytest.raises(TransferError, match="larger"):
        do(server, tmp_path / "mail", "get", PLACE, tmp_path / "update", small)
    assert not (tmp_path / "update").exists()


def test_a_key_may_be_pinned_to_the_mailbox(server, source, tmp_path):
    sshd.need("rrsync")
    mailbox = tmp_path / "mail"
    mailbox.mkdir()
    (tmp_path / "secret").mkdir()
    key = f"pinned-{tmp_path.name}"
    server.make_key(key)
    server.allow(key, f'restrict,command="rrsync {mailbox}"')
    config = tmp_path / "ssh_config"
    text = (server.root / "ssh_config").read_text()
    config.write_text(text.replace(f"{server.root}/key", f"{server.root}/{key}"))
    pinned = {"path": "/", "config": config}
    assert put(server, source, mailbox, **pinned).bytes == len(DATA) + 2
    assert put(server, source, mailbox, **pinned).bytes == 0
    damage(mailbox / PLACE)
    assert put(server, source, mailbox, **pinned).bytes > 0
    target = tmp_path / "back"
    do(server, mailbox, "get", PLACE, target, FILES, **pinned)
    assert (target / "a.safetensors").read_bytes() == DATA
    outside = tmp_path / "secret"
    with pytest.raises(TransferError, match="rrsync"):
        put(server, source, mailbox, **{**pinned, "path": str(outside)})
    assert list(outside.iterdir()) == []


def test_a_key_pinned_to_commands_is_told_apart_at_once(server, source, tmp_path):
    """Else rsync and `hansa site rpc` would wait for each other."""
    site = tmp_path / "site.yaml"
    site.write_text(
        f"name: a\nscheduler: local\nmailbox: {tmp_path}/m\ntasks: {{digits: {{}}}}\n"
    )
    key = server.make_key(f"commands-{tmp_path.name}")
    rpc = f"{sys.executable} -m hansa.cli site rpc --site {site}"
    server.allow(key.name, f'restrict,command="{rpc}"')
    config = tmp_path / "ssh_config"
    text = (server.root / "ssh_config").read_text()
    config.write_text(text.replace(f"{server.root}/key", str(key)))
    began = time.monotonic()
    with pytest.raises(TransferError, match="only, not rsync") as caught:
        put(server, source, tmp_path / "mail", config=config)
    assert time.monotonic() - began < 60
    assert not caught.value.transient
    assert "mover.identity" in caught.value.hint


DENIED = "h: Permission denied (keyboard-interactive)."


def test_a_refused_login_is_waited_for_where_it_worked_before():
    line = Line(SshOptions(host="h"))
    options = RsyncOptions(host="h")
    done = Finished(255, "", DENIED)
    assert not failure(done, "h:/m", line, options).transient
    line.answered()
    error = failure(done, "h:/m", line, options)
    assert error.transient
    assert "Open it again" in error.hint


def test_a_configuration_that_hangs_is_transient(source, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin/ssh"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=os.pathsep)
    monkeypatch.setattr(mover_line, "_LOCAL_S", 0.2)
    with pytest.raises(TransferError, match="ssh -G") as caught:
        put(sshd.Sshd(tmp_path, port=1), source, tmp_path / "mail")
    assert caught.value.transient


def test_a_link_above_is_never_replaced(server, source, tmp_path):
    mailbox, other = tmp_path / "mail", tmp_path / "scratch"
    mailbox.mkdir()
    other.mkdir()
    (mailbox / "r").symlink_to(other)
    with suppress(TransferError):  # older rsyncs follow it, newer ones refuse
        put(server, source, mailbox)
    assert (mailbox / "r").is_symlink()


def test_a_server_that_is_away_is_transient(source, tmp_path):
    away = sshd.Sshd(tmp_path, port=ports.block(1))
    (tmp_path / "ssh_config").write_text("")
    with pytest.raises(TransferError, match="refused") as caught:
        put(away, source, tmp_path / "mail")
    assert caught.value.transient


def test_a_missing_rsync_there_is_lasting(server, source, tmp_path):
    with pytest.raises(TransferError, match="no-rsync") as caught:
        put(server, source, tmp_path / "mail", command="/nowhere/no-rsync")
    assert not caught.value.transient
    assert "mover.command" in caught.value.hint


def test_a_mailbox_without_a_parent_is_lasting(server, source, tmp_path):
    with pytest.raises(TransferError) as caught:
        put(server, source, tmp_path / "no/such/mail")
    assert not caught.value.transient
    assert "mkdir -p" in caught.value.hint


@pytest.mark.parametrize("root", ["/a b", "/a;b", "/$(reboot)", "/a\n"])
def test_a_mailbox_path_with_odd_characters_is_refused(source, tmp_path, root):
    away = sshd.Sshd(tmp_path, port=1)
    with pytest.raises(TransferError, match="characters") as caught:
        put(away, source, Path(root))
    assert not caught.value.transient


def test_without_rsync_here_it_says_what_to_install(
    server, source, tmp_path, monkeypatch
):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").symlink_to(str(shutil.which("ssh")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(TransferError, match="can't be started") as caught:
        put(server, source, tmp_path / "mail")
    assert "Install" in caught.value.hint


NO_SPACE = "rsync: [receiver] write failed on x: No space left on device (28)"


def told(code, words):
    options = RsyncOptions(host="h")
    line = Line(SshOptions(host="h"))
    return failure(Finished(code, "", words), "h:/m", line, options)


@pytest.mark.parametrize(
    "words", [NO_SPACE, "rsync: write failed: Disk quota exceeded (122)"]
)
def test_a_full_disk_is_recognised(words):
    assert isinstance(told(11, words), StorageFull)


@pytest.mark.parametrize(
    ("code", "words", "transient"),
    [
        (255, "ssh: connect to host h port 22: Connection refused", True),
        (255, "Host key verification failed.\nrsync: connection closed", False),
        (12, "h: Permission denied (publickey).\nrsync: closed", False),
        (12, "rsync: connection unexpectedly closed (0 bytes)", True),
        (12, "/usr/bin/rrsync error: option --foo has been disabled", False),
        (10, "rsync error: error in socket IO (code 10)", True),
        (30, "rsync error: timeout in data send/receive (code 30)", True),
        (35, "rsync error: timeout waiting for daemon (code 35)", True),
        (24, "rsync warning: some files vanished (code 24)", True),
        (23, 'rsync: mkstemp "x" failed: Permission denied (13)', False),
        (11, 'rsync: mkdir "x" failed: Read-only file system (30)', False),
        (23, 'rsync: link_stat "x" failed: No such file or directory (2)', True),
        (1, "rsync error: syntax or usage error (code 1)", False),
        (2, "protocol version mismatch -- is your shell clean?", False),
        (127, "bash: rsync: command not found", False),
        (12, "bash: line 1: /x/rsync: No such file or directory\nrsync: [R] x", False),
        (13, "rsync: Command not found.\nrsync: [R] Broken pipe (32)", False),
        (12, "zsh:1: command not found: rsync\nrsync: [R] Broken pipe", False),
    ],
)
def test_exit_codes_are_told_apart(code, words, transient):
    error = told(code, words)
    assert isinstance(error, TransferError)
    assert error.transient is transient
    assert error.hint
