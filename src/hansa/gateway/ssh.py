"""A facility behind ssh: one short command on its login node for each request.

The command is always ``hansa site rpc --site PATH``, made from the options alone; the
request goes to its stdin. So a facility can pin the key to it, in
``~/.ssh/authorized_keys`` there::

    restrict,command="/path/hansa site rpc --site /path/site.yaml" ssh-ed25519 AAAA…

Whatever the client then asks to run is ignored (the server notes it as
``SSH_ORIGINAL_COMMAND``, which is read only to tell rsync that it is wrong here);
``restrict`` takes away forwarding and
terminals. Files need a second key, pinned to the mailbox by rsync's own ``rrsync``; see
`hansa.mover.rsync`.

Where a login needs a one-time password (NERSC, OLCF, ALCF), open the connection by hand
before the run: the error message holds the exact command. If your ssh configuration
names a ``ControlPath`` for the host, Hansa uses that one, unless the option `identity`
is given. The gateway and the mover then share a connection, and so a key. With two
pinned keys give each an alias and thus a connection of its own (``%n`` is the alias)::

    Host polaris polaris-files
        HostName polaris.alcf.anl.gov
        User me
        ControlMaster auto
        ControlPath ~/.ssh/%n-%C
        ControlPersist 24h
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, Field

from hansa.core import ssh
from hansa.core.errors import FacilityError, GatewayError
from hansa.core.remarks import Remark
from hansa.core.ssh import SshOptions
from hansa.gateway.reply import last_object
from hansa.mover.line import Line
from hansa.mover.process import Finished, run
from hansa.site.rpc import unwrap

_LINE_DOWN = 255
_NOT_FOUND = (126, 127)
_USAGE = 2


def _words(text: str) -> str:
    if not shlex.split(text):
        raise ValueError("is empty")
    return text


class SshGatewayOptions(SshOptions):
    """Options of the gateway over ssh.

    Attributes:
        command: The program there, with its arguments if it needs some, as
            `~/hansa/bin/hansa` or `apptainer exec hansa.sif hansa`.
        site: Path of site.yaml there, absolute or from the home directory.
    """

    command: Annotated[str, AfterValidator(_words)] = "hansa"
    site: Annotated[str, Field(min_length=1)]


class SshGateway:
    """Calls ``hansa site rpc`` over one shared connection.

    Args:
        options: Its options.
    """

    Options: ClassVar[type[BaseModel]] = SshGatewayOptions
    timeout = 60.0
    every = 0.0

    def __init__(self, options: SshGatewayOptions) -> None:
        self._options = options
        self._line = Line(SshOptions.model_validate(_login(options)))
        self._first = asyncio.Lock()
        self._connected = False

    async def call(
        self,
        request: Mapping[str, object],
        timeout: float,  # noqa: ASYNC109 - it crosses to the facility's side
    ) -> dict[str, Any]:
        """Return the reply's data; see `Gateway.call`.

        Raises:
            GatewayError: ssh can't connect or log in, there is no `hansa` there, or it
                does not answer in time or in words that make sense.
            HansaError: What the agent answered.
        """
        op = request.get("op")
        try:
            async with asyncio.timeout(timeout):
                done = await self._run(json.dumps(request).encode())
        except TimeoutError:
            raise GatewayError(
                f"{self._options.host} has not answered {op!r} within {timeout:g} s.",
            ) from None
        except OSError as error:
            raise GatewayError(
                f"ssh can't be started: {error.strerror or error}.",
                hint="Install the OpenSSH client.",
                transient=False,
            ) from error
        except FacilityError as error:
            raise GatewayError.of(error) from error
        reply = last_object(done.stdout)
        if reply is None:
            raise self._failure(done)
        return unwrap(reply)

    async def check(self) -> list[Remark]:
        """Say nothing: the first call tries the line."""
        return []

    async def close(self) -> None:
        """Let go of the connection."""
        await self._line.close()

    async def _run(self, request: bytes) -> Finished:
        options = self._options
        first, *rest = shlex.split(options.command)
        program = [ssh.from_home(first), *rest]
        words = [*program, "site", "rpc", "--site", ssh.from_home(options.site)]
        there = ["--", options.host, ssh.remote_line(words)]
        if self._connected:
            return await self._ask(there, request)
        async with self._first:  # the first call opens the connection for all others
            return await self._ask(there, request)

    async def _ask(self, there: list[str], request: bytes) -> Finished:
        done = await run([*await self._line.command(), *there], stdin=request)
        self._connected = done.returncode != _LINE_DOWN
        if self._connected:
            self._line.answered()
        return done

    def _failure(self, done: Finished) -> GatewayError:
        options = self._options
        words = ssh.last_words(f"{done.stdout}\n{done.stderr}")
        if done.returncode == _LINE_DOWN:
            trouble = self._line.trouble(done.stderr)
            return GatewayError(
                f"ssh can't reach {options.host}: {trouble.words}",
                hint=trouble.hint,
                transient=trouble.transient,
            )
        if done.returncode in _NOT_FOUND:
            return GatewayError(
                f"{options.command!r} can't be run on {options.host}: {words}",
                hint="Install hansa there, and write its whole path into "
                "`gateway.command`, as ~/hansa/bin/hansa: a command over ssh reads no "
                "login files.",
                transient=False,
            )
        return GatewayError(
            f"The answer of {options.host} is no reply (exit code "
            f"{done.returncode}): {words}",
            hint=f"Run `{options.command} site check --site {options.site}` there.",
            transient=done.returncode != _USAGE,
        )


def _login(options: SshOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in SshOptions.model_fields}
