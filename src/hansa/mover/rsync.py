"""A facility behind ssh: files go by `rsync`, over the same connection as the calls.

A facility can pin the key to the mailbox, in ``~/.ssh/authorized_keys`` there, with the
script that comes with rsync::

    restrict,command="rrsync /path/to/mailbox" ssh-ed25519 AAAA…

The option is then ``path: /``, as `rrsync` takes paths from that folder. It must
be another key than the gateway's, since a key can be pinned to one command only.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field

from hansa.core import ssh
from hansa.core.errors import FacilityError, HansaError, TransferError
from hansa.core.files import FileRecords
from hansa.core.remarks import Remark
from hansa.core.ssh import SshOptions
from hansa.mover import landing
from hansa.mover.base import MANIFEST, Damaged, Moved, Place
from hansa.mover.line import Line
from hansa.mover.process import Finished, run

_PARTIAL = ".rsync-partial"
_SILENCE_S = 600  # a slow file system may need as long for the checksum of one file
_AT_ONCE = 2
_PLAIN = re.compile(r"[A-Za-z0-9_./@+,:=~-]+")
_LITERAL = re.compile(r"^Literal data: ([\d.,]+)", re.MULTILINE)
_SENT = re.compile(r"^<f", re.MULTILINE)


class RsyncOptions(SshOptions):
    """Options of the mover over rsync and ssh.

    Attributes:
        path: The mailbox root as rsync sees it there; None: as its site agent names
            it. With `rrsync` it is ``/``.
        command: The rsync program there.
    """

    path: Annotated[str, Field(min_length=1)] | None = None
    command: Annotated[str, Field(min_length=1)] = "rsync"


class RsyncMover:
    """Data files first, the manifest last: without it nothing counts as there.

    What a broken line leaves is taken up again by the next try. What was put is read
    back by checksum at the facility; what was fetched is verified by its sha256 and
    appears under its final name by one rename.

    Args:
        options: Its options.
        place: Where it works.
    """

    Options: ClassVar[type[BaseModel]] = RsyncOptions

    def __init__(self, options: RsyncOptions, place: Place) -> None:
        self._options = options
        self._root = ssh.from_home(options.path or str(place.mailbox)).rstrip("/")
        names = SshOptions.model_fields
        login = {name: getattr(options, name) for name in names}
        self._line = Line(SshOptions.model_validate(login))
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def put(self, source: Path, target: str, files: FileRecords) -> Moved:
        """Bring a directory to the facility; see `Mover.put`."""
        place = self._place(target)
        landing.check_names(files, source)
        return await self._in_turn(lambda: self._put(source, place, files))

    async def get(self, source: str, target: Path, files: FileRecords) -> Moved:
        """Fetch a directory from the facility; see `Mover.get`."""
        place = self._place(source)
        landing.check_names(files, source)
        return await self._in_turn(lambda: self._get(place, target, files))

    async def check(self) -> list[Remark]:
        """Say nothing: the line is tried by the gateway, which shares it."""
        return []

    async def close(self) -> None:
        """Let go of the connection."""
        await self._line.close()

    # --- to the facility --------------------------------------------------------------

    async def _put(self, source: Path, place: str, files: FileRecords) -> int:
        manifest = await asyncio.to_thread(_checked, source, files)
        there = await self._manifest(place)
        if there not in (None, manifest):
            raise landing.another_manifest(self._shown(place))
        moved = 0
        if there is None:
            await self._make_folder(place)
            moved += await self._push(source, place, files)
        if await self._differs(source, place, files):
            moved += await self._push(source, place, files, "--checksum")
            if await self._differs(source, place, files):
                raise Damaged(
                    f"{self._shown(place)} still differs from {source} after it was "
                    "sent.",
                    hint="Does something else write there, or is that disk damaged?",
                )
        if there is None:
            moved += await self._push(source, place, (MANIFEST,))
        return moved

    async def _make_folder(self, place: str) -> None:
        with tempfile.TemporaryDirectory(prefix="hansa-") as stage:
            (Path(stage) / place).mkdir(parents=True)
            # A link above is left alone: older rsyncs follow it, newer ones refuse.
            argv = ["-d", "--no-implied-dirs", f"{stage}/", self._remote("")]
            await self._rsync(argv, [f"{place}/"], self._shown(place))

    async def _push(
        self, source: Path, place: str, names: Iterable[str], *more: str
    ) -> int:
        argv = [*_SEND, *more, "--stats", f"{source}/", self._remote(place)]
        return _literal(await self._rsync(argv, names, self._shown(place)))

    async def _differs(self, source: Path, place: str, names: Iterable[str]) -> bool:
        look = ["--dry-run", "--checksum", "--out-format=%i %n"]
        argv = [*_SEND, *look, f"{source}/", self._remote(place)]
        done = await self._rsync(argv, names, self._shown(place))
        return _SENT.search(done.stdout) is not None

    # --- from the facility ------------------------------------------------------------

    async def _get(self, place: str, target: Path, files: FileRecords) -> int:
        manifest = await self._manifest(place)
        if manifest is None:
            raise Damaged(
                f"{self._shown(place)} has no manifest.",
                hint="It is still being written, or was removed there.",
            )
        aside = target.with_name(f".{target.name}.arriving")
        if await asyncio.to_thread(_prepare, aside, target, manifest, files):
            return 0
        largest = max((record.bytes for record in files.values()), default=0)
        argv = [*_FETCH, f"--max-size={largest}", "--stats", self._remote(place)]
        done = await self._rsync([*argv, f"{aside}/"], files, target)
        await asyncio.to_thread(
            _accept, self._shown(place), aside, target, files, manifest
        )
        return _literal(done) + len(manifest)

    async def _manifest(self, place: str) -> bytes | None:
        """Return the bytes of a manifest there, or None if there is none."""
        with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
            argv = [
                *_FETCH,
                f"--max-size={landing.MANIFEST_LIMIT}",
                "--ignore-missing-args",
            ]
            names = [f"{place}/{MANIFEST}"]
            argv = [*argv, self._remote(""), f"{folder}/"]
            done = await self._run(argv, names)
            if done.returncode != 0 and not _is_absent(done.stderr):
                raise self._failure(done, self._shown(place))
            path = Path(folder) / MANIFEST
            return path.read_bytes() if path.is_file() else None

    # --- both -------------------------------------------------------------------------

    async def _in_turn(self, work: Callable[[], Awaitable[int]]) -> Moved:
        async with self._turn:
            began = time.monotonic()
            size = await work()
            return Moved(bytes=size, seconds=time.monotonic() - began)

    def _place(self, relative: str) -> str:
        parts = landing.mailbox_parts(relative)
        if not all(_PLAIN.fullmatch(part) for part in (*parts, self._root or "/")):
            raise TransferError(
                f"{self._shown('/'.join(parts))!r} has characters that can't go over "
                "ssh.",
                hint="Use a mailbox path of letters, digits and . _ - + @ only.",
                transient=False,
            )
        return "/".join(parts)

    def _shown(self, place: str) -> str:
        return f"{self._options.host}:{self._root}/{place}"

    def _remote(self, place: str) -> str:
        host = self._options.host
        where = f"[{host}]" if ":" in host else host
        return f"{where}:{self._root}/{place}{'/' if place else ''}"

    async def _rsync(
        self, argv: list[str], names: Iterable[str], where: object
    ) -> Finished:
        listed = list(names)
        if not listed:
            return Finished(0, "", "")
        done = await self._run(argv, listed)
        if done.returncode != 0:
            raise self._failure(done, where)
        return done

    async def _run(self, argv: list[str], names: Iterable[str]) -> Finished:
        """Run rsync over the names; they go by its stdin, never by a shell."""
        try:
            line = shlex.join(await self._line.command())
            there = f"--rsync-path={ssh.from_home(self._options.command)}"
            whole = ["rsync", *_ALWAYS, "-e", line, there, *argv]
            done = await run(whole, stdin="".join(f"{n}\0" for n in names).encode())
        except OSError as error:
            raise TransferError(
                f"rsync can't be started: {error.strerror or error}.",
                hint="Install rsync and the OpenSSH client on this machine.",
                transient=False,
            ) from error
        except FacilityError as error:
            raise TransferError.of(error) from error
        if done.returncode in _ANSWERED:
            self._line.answered()
        return done

    def _failure(self, done: Finished, where: object) -> HansaError:
        return failure(done, where, self._line, self._options)


_ALWAYS = (
    "--files-from=-",
    "--from0",
    "--no-human-readable",
    f"--timeout={_SILENCE_S}",
)
_SEND = (
    "--no-relative",
    "--times",
    "--perms",
    f"--chmod=F{landing.READ_ONLY:o}",
    f"--partial-dir={_PARTIAL}",
)
_FETCH = ("--no-relative", "--times", f"--partial-dir={_PARTIAL}")

_NOISE = "is your shell clean"
_ABSENT = "No such file or directory"
_FULL = ("no space left", "quota exceeded")
_NOT_ALLOWED = re.compile(
    r"permission denied \(13\)|read-only file system|not permitted|rrsync error"
    r"|mkdir .* failed: (no such|not a|too many)"
)
# The code alone does not tell: rsync may notice the broken pipe first.
_NO_PROGRAM = re.compile(
    r"^(?:rsync: command not found|(?!ssh:)\S*sh:.*(?:not found|no such file))",
    re.MULTILINE,
)
_ANSWERED = (0, 23, 24)
_LINE_DOWN = (10, 12, 255)
_LASTING = (1, 2, 3, 4, 5, 6, 126, 127)


def failure(
    done: Finished, where: object, line: Line, options: RsyncOptions
) -> HansaError:
    """Return what a failed rsync means.

    Args:
        done: What it left behind.
        where: What it was to write or read, for the message.
        line: The connection that it used.
        options: The mover's options.
    """
    code, lower = done.returncode, done.stderr.lower()
    told = ssh.last_words(done.stderr)
    if any(sign in lower for sign in _FULL):
        return landing.full(where)
    if code in (126, 127) or _NO_PROGRAM.search(lower):
        return TransferError(
            f"{options.command!r} can't be run on {options.host}: {told}",
            hint="Install rsync there, or name its path in `mover.command`.",
            transient=False,
        )
    if ssh.PINNED in done.stderr or _NOISE in lower:
        return _another_program(options.host, told)
    # ssh speaks first; what rsync says after it ("connection closed") explains nothing.
    own = [one for one in done.stderr.splitlines() if not one.startswith("rsync")]
    refused = _NOT_ALLOWED.search(lower) is not None
    if code in _LINE_DOWN and any(own) and not refused:
        trouble = line.trouble("\n".join(own))
        return TransferError(
            f"ssh can't reach {options.host}: {trouble.words}",
            hint=trouble.hint,
            transient=trouble.transient,
        )
    return TransferError(
        f"rsync can't bring files to or from {where} (exit code {code}): {told}",
        hint=f"Is the mailbox there, and writable? `mkdir -p` it on {options.host}; "
        "behind rrsync the mover's `path` is /."
        if refused or code in _LASTING
        else "Transfers are tried again by themselves.",
        transient=not refused and code not in _LASTING,
    )


def _another_program(host: str, told: str) -> TransferError:
    return TransferError(
        f"On {host} another program answers than rsync: {told}",
        hint="A key that is pinned to `hansa site rpc` carries no files. Give the "
        "mover a key and a connection of its own: `mover.identity`, or an alias of the "
        "host in your ssh configuration with `ControlPath ~/.ssh/%n-%C`. Or does a "
        "login file there print something?",
        transient=False,
    )


def _is_absent(words: str) -> bool:
    """Tell whether rsync failed only because a folder is not there yet."""
    wrong = [line for line in words.splitlines() if re.match(r"rsync: \[?\w+", line)]
    return any(_ABSENT in line for line in wrong) and all(
        _ABSENT in line or "closed" in line or "Broken pipe" in line for line in wrong
    )


def _literal(done: Finished) -> int:
    match = _LITERAL.search(done.stdout)
    return int(re.sub(r"\D", "", match[1])) if match else 0


def _checked(source: Path, files: FileRecords) -> bytes:
    """Return the manifest of a directory here whose files are what it promises."""
    with landing.readable_errors(source, "the facility"):
        manifest = landing.read_manifest(source)
        for name, record in files.items():
            landing.regular(source / name)
            landing.verify(source / name, record, source / name)
    return manifest


def _prepare(aside: Path, target: Path, manifest: bytes, files: FileRecords) -> bool:
    """Make the folder to fetch into; True if all is here already."""
    with landing.readable_errors("an update", target):
        if landing.arrived(target, manifest, files):
            return True
        aside.mkdir(parents=True, exist_ok=True)
        return False


def _accept(
    origin: str, aside: Path, target: Path, files: FileRecords, manifest: bytes
) -> None:
    """Verify what was fetched and give it its place; throw it away if it is damaged."""
    try:
        with landing.readable_errors(origin, target):
            for entry in aside.iterdir():
                if entry.name == _PARTIAL:
                    shutil.rmtree(entry)
                elif entry.name not in files:
                    entry.unlink()
            for name, record in files.items():
                _present(aside / name, f"{origin}/{name}")
                landing.verify(aside / name, record, f"{origin}/{name}")
            landing.settle(aside, target, files, manifest)
    except HansaError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _present(path: Path, origin: str) -> None:
    if not path.is_file():
        raise Damaged(
            f"{origin} is not what its manifest promises: it is missing, larger, or no "
            "regular file.",
            hint="It was damaged or is still being written.",
        )
