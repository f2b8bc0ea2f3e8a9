"""Where a login is kept: one folder of the user's, closed to everybody else.

::

    ~/.config/hansa/globus/   700; or $XDG_CONFIG_HOME/hansa/globus, $HANSA_GLOBUS_DIR
        client.json           600; the client ids, by Globus environment
        tokens.json           600; globus-sdk's own file of tokens
        lock                  600
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hansa.core.errors import LoginError

FOLDER: Final = "HANSA_GLOBUS_DIR"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

log = logging.getLogger(__name__)


def path() -> Path:
    """Return the folder; it need not exist."""
    named = os.environ.get(FOLDER)
    if named:
        return Path(named).expanduser()
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "hansa" / "globus"


def tokens_path() -> Path:
    """Return the file of this environment's tokens; it need not exist."""
    here = environment()
    return path() / ("tokens.json" if here == "production" else f"tokens.{here}.json")


def environment() -> str:
    """Return the Globus environment, which is ``production`` but for tests.

    Raises:
        LoginError: It is no plain word, as globus-sdk's are.
    """
    named = os.environ.get("GLOBUS_SDK_ENVIRONMENT") or "production"
    if not named.isalnum():
        raise LoginError(
            f"GLOBUS_SDK_ENVIRONMENT is {named!r}, which is no environment of Globus.",
            hint="Unset it.",
            transient=False,
        )
    return named


def make() -> Path:
    """Return the folder, made with mode 700 if it is missing.

    Raises:
        LoginError: Others can look into it.
    """
    where = path()
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private()
    return where


def check_private() -> None:
    """Look whether the folder and its files are the user's alone.

    Raises:
        LoginError: Somebody else owns one of them, or can read or write it.
    """
    where = path()
    for one in (where, where / "client.json", tokens_path()):
        try:
            found = one.stat()
        except FileNotFoundError:
            continue
        _check(one, found)


def _check(one: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise LoginError(
            f"{one} belongs to another user (uid {found.st_uid}).",
            hint=f"Name a folder of your own in {FOLDER}.",
            transient=False,
        )
    if found.st_mode & _OTHERS:
        raise LoginError(
            f"Others can get at {one} (mode {stat.S_IMODE(found.st_mode):o}), which "
            "holds the Globus login.",
            hint=f"Run `chmod -R go= {path()}`; if somebody may have read it, run "
            "`hansa logout` and log in again.",
        )


def read_client_id() -> str | None:
    """Return the remembered client id of a person, or None.

    Raises:
        LoginError: The folder is open to others, or the file is damaged.
    """
    check_private()
    return _clients().get(environment())


def remember_client_id(client_id: str) -> None:
    """Keep the client id for later logins.

    Raises:
        LoginError: The folder is open to others, or the file is damaged.
    """
    where = make()
    with lock():
        known = {**_clients(), environment(): client_id}
        with copy_of(where / "client.json") as aside:
            aside.write_text(json.dumps(known, indent=2), encoding="utf-8")


def _clients() -> dict[str, str]:
    file = path() / "client.json"
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        data = None
    if isinstance(data, dict) and all(isinstance(one, str) for one in data.values()):
        return data
    raise LoginError(
        f"{file} is damaged.",
        hint=f"Remove it, and run `hansa login --client-id ID` ({file.name} holds "
        "nothing but client ids).",
    )


@contextmanager
def copy_of(file: Path) -> Iterator[Path]:
    """Let a file be changed as a whole or not at all; hold the lock.

    Yields:
        A copy of mode 600, or a name without a file if there was none; it takes the
        place of `file` at the end.
    """
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        if file.exists():
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(file.read_bytes())
        yield aside
        with aside.open("rb+") as written:
            os.fchmod(written.fileno(), 0o600)
            os.fsync(written.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def lock() -> Iterator[None]:
    """Keep other threads and processes from changing the files meanwhile."""
    handle = os.open(make() / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # What is at stake is a token refreshed twice, which is harmless.
        log.warning("%s can't be locked: %s", path(), error.strerror)
