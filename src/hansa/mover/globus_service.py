"""The calls of Globus Transfer that the mover needs, one at a time."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hansa.core.errors import GatewayError, LoginError, TransferError
from hansa.core.files import FileRecord
from hansa.login.clients import transfer_client
from hansa.login.extra import extra
from hansa.mover import globus_words as words
from hansa.mover.globus_words import TaskView

if TYPE_CHECKING:
    import globus_sdk
    from globus_sdk import TransferClient

T = TypeVar("T")

_TRIES = 1
"""More tries at once would only keep a thread; whoever calls tries again later."""
_EVENTS = 10
_RECENT = 1000
_LABEL = re.compile(r"[^A-Za-z0-9 ,_-]")
_LABEL_MOST = 128


class Pace:
    """Keeps the calls of this process under the service's limits.

    Args:
        most: Calls in a window.
        window: Its seconds.
    """

    def __init__(self, most: int, window: float) -> None:
        self.most = most
        self.window = window
        self._began: deque[float] = deque()

    async def turn(self) -> None:
        """Return when one more call may be made."""
        while True:
            now = time.monotonic()
            while self._began and self._began[0] <= now - self.window:
                self._began.popleft()
            if len(self._began) < self.most:
                self._began.append(now)
                return
            await asyncio.sleep(self._began[0] + self.window - now)


PACE = Pace(50, 10.0)
"""That of all movers of this process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """A collection, and how people know it.

    Attributes:
        collection: Its UUID.
        name: What it is of, for messages.
        key: The option that names paths in it.
    """

    collection: str
    name: str
    key: str

    def shown(self, path: str) -> str:
        """Return a path in it as people read it."""
        return f"{self.name}:{path}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One file to move: paths as the collections show them.

    Attributes:
        origin: Path to read.
        target: Path to write.
        bytes: Its size.
        sha256: What it must be, in hex; None: not known.
    """

    origin: str
    target: str
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a task is to do.

    Attributes:
        ticket: Its submission id.
        source: Where the files are.
        target: Where they go.
        items: The files.
        label: What people see at app.globus.org; it gets the ticket, too.
        deadline: Seconds from now after which the service gives up.
    """

    ticket: str
    source: Spot
    target: Spot
    items: tuple[Item, ...]
    label: str
    deadline: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What a listing says of a name.

    Attributes:
        plain: It is a regular file, no link.
        bytes: Its size.
    """

    plain: bool
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """The answer to a submission.

    Attributes:
        task: Id of the task.
        again: The service knew the ticket already; nothing new was started.
    """

    task: str
    again: bool


class Service:
    """Globus Transfer, as one user.

    All methods raise `LoginError` where a login or a consent is missing, a transient
    `TransferError` where the service or a collection's server is away, and another
    `TransferError` for what they refuse.

    Args:
        consents: Ids of the collections that need a ``data_access`` consent.
    """

    def __init__(self, consents: Iterable[str]) -> None:
        self._consents = tuple(consents)
        self._client: TransferClient | None = None
        # A client may be used by one thread at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hansa-globus")

    def close(self) -> None:
        """Let go of thread and connections, when the call at hand is done."""
        self._thread.submit(self._hang_up)
        self._thread.shutdown(wait=False)

    # --- tasks ------------------------------------------------------------------------

    async def ticket(self) -> str:
        """Return a new submission id."""
        doing = "asking for a submission id"
        return await self._call(
            doing, "mover", lambda client: str(client.get_submission_id()["value"])
        )

    async def submit(self, order: Order) -> Accepted:
        """Submit a transfer; a second time under the same ticket changes nothing."""

        def ask(client: TransferClient) -> Accepted:
            answer = client.submit_transfer(_document(order))
            again = answer["code"] == "Duplicate"
            return Accepted(task=str(answer["task_id"]), again=again)

        doing = f"submitting a transfer from {order.source.name} to {order.target.name}"
        return await self._call(doing, order.target.key, ask)

    async def look(self, task: str) -> TaskView:
        """Tell how a task stands."""
        doing = f"looking after the transfer {task}"
        return await self._call(
            doing, "mover", lambda client: _view(client.get_task(task).data)
        )

    async def sent(self, task: str) -> dict[str, int]:
        """Return the sizes of the files that a task sent, by their target."""

        def ask(client: TransferClient) -> dict[str, int]:
            pages = client.paginated.task_successful_transfers(task)
            return {
                str(one["destination_path"]): int(one.get("size") or 0)
                for one in pages.items()
            }

        doing = f"asking what the transfer {task} sent"
        return await self._call(doing, "mover", ask)

    async def events(self, task: str) -> list[str]:
        """Return the last errors of a task in words, the newest first."""

        def ask(client: TransferClient) -> list[str]:
            return [
                words.clean(f"{one['code']}: {one.get('details') or ''}").rstrip(": ")
                for one in client.task_event_list(task, limit=_EVENTS)
                if one.get("is_error")
            ]

        return await self._call(f"asking why the transfer {task} failed", "mover", ask)

    async def cancel(self, task: str) -> None:
        """Cancel a task; one that is over stays as it is."""
        doing = f"cancelling the transfer {task}"
        await self._call(doing, "mover", lambda client: client.cancel_task(task))

    async def find(self, ticket: str) -> str | None:
        """Return the task that was submitted under a ticket lately, if there is one."""

        def ask(client: TransferClient) -> str | None:
            tasks = client.task_list(
                limit=_RECENT, orderby="request_time DESC", filter="type:TRANSFER"
            )
            found = (one for one in tasks if ticket in str(one.get("label")))
            return next((str(one["task_id"]) for one in found), None)

        return await self._call("looking for a transfer", "mover", ask)

    # --- paths ------------------------------------------------------------------------

    async def listing(self, spot: Spot, path: str) -> dict[str, Entry] | None:
        """Return what a directory holds, by name; None: there is none."""

        def ask(client: TransferClient) -> dict[str, Entry] | None:
            try:
                listed = client.operation_ls(spot.collection, path)
            except _api_error() as error:
                if words.is_absent(error):
                    return None
                raise
            return {str(one["name"]): _entry(one) for one in listed}

        return await self._call(f"listing {spot.shown(path)}", spot.key, ask)

    async def make_folder(self, spot: Spot, path: str) -> None:
        """Make one directory; its parent must be there. It may be there already."""

        def ask(client: TransferClient) -> None:
            try:
                client.operation_mkdir(spot.collection, path)
            except _api_error() as error:
                if not words.code_of(error).endswith("Exists"):
                    raise

        await self._call(f"making {spot.shown(path)}", spot.key, ask)

    async def rename(self, spot: Spot, old: str, new: str) -> None:
        """Give a directory its name."""
        doing = f"renaming {spot.shown(old)} to {new}"
        await self._call(
            doing,
            spot.key,
            lambda client: client.operation_rename(spot.collection, old, new),
        )

    async def remove(self, spot: Spot, path: str) -> None:
        """Have a directory removed, with all that is in it; nobody waits for it."""

        def ask(client: TransferClient) -> None:
            import globus_sdk  # noqa: PLC0415 - an extra; the client is of it

            document = globus_sdk.DeleteData(
                spot.collection,
                recursive=True,
                label="hansa removes what is there twice",
                additional_fields={"ignore_missing": True, **_NO_MAIL},
            )
            document.add_item(path)
            client.submit_delete(document)

        await self._call(f"removing {spot.shown(path)}", spot.key, ask)

    async def collection(self, spot: Spot) -> Mapping[str, Any]:
        """Return what the service knows of a collection."""
        doing = f"asking for the collection {spot.collection} of {spot.name}"
        return await self._call(
            doing, spot.key, lambda client: client.get_endpoint(spot.collection).data
        )

    # --- the line ---------------------------------------------------------------------

    async def _call(
        self, doing: str, key: str, ask: Callable[[TransferClient], T]
    ) -> T:
        await PACE.turn()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._ask, doing, key, ask)

    def _ask(self, doing: str, key: str, ask: Callable[[TransferClient], T]) -> T:
        with extra():
            from globus_sdk import GlobusError  # noqa: PLC0415 - an extra
        try:
            return ask(self._connected())
        except GlobusError as error:
            trouble = words.refused(error, doing, key)
            if isinstance(trouble, LoginError):
                self._hang_up()  # the next call sees a login in another terminal
            raise trouble from error
        except GatewayError as error:  # no answer from where tokens are made
            raise TransferError.of(error) from error
        except (KeyError, TypeError, ValueError) as error:
            raise TransferError(
                f"Globus gave an answer that makes no sense while {doing}: {error!r}"
            ) from error

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> TransferClient:
        if self._client is None:
            self._client = transfer_client(self._consents)
            self._client.retry_config.max_retries = _TRIES
        return self._client


_NO_MAIL = {
    "notify_on_succeeded": False,
    "notify_on_failed": False,
    "notify_on_inactive": False,
}


def _api_error() -> type[Exception]:
    import globus_sdk  # noqa: PLC0415 - an extra; the client is of it

    return globus_sdk.GlobusAPIError


def _document(order: Order) -> globus_sdk.TransferData:
    with extra():
        import globus_sdk  # noqa: PLC0415 - an extra
    last = datetime.now(UTC) + timedelta(seconds=order.deadline)
    document = globus_sdk.TransferData(
        order.source.collection,
        order.target.collection,
        submission_id=order.ticket,
        label=_LABEL.sub("-", f"hansa {order.ticket} {order.label}")[:_LABEL_MOST],
        deadline=last.isoformat(timespec="seconds"),
        sync_level="checksum",
        verify_checksum=True,
        encrypt_data=True,
        fail_on_quota_errors=True,
        notify_on_succeeded=False,
        notify_on_failed=False,
        notify_on_inactive=False,
    )
    for item in order.items:
        if item.sha256 is None:
            document.add_item(item.origin, item.target)
        else:
            document.add_item(
                item.origin,
                item.target,
                external_checksum=item.sha256,
                checksum_algorithm="sha256",
            )
    return document


def record_item(origin: str, target: str, record: FileRecord) -> Item:
    """Return the item of a file that a manifest knows."""
    return Item(origin=origin, target=target, bytes=record.bytes, sha256=record.sha256)


def _view(data: Mapping[str, Any]) -> TaskView:
    fatal = data.get("fatal_error") or {}
    status, nice = str(data["status"]), str(data.get("nice_status") or "")
    if data.get("is_paused") and nice.upper() in words.WELL:
        nice = "PAUSED"
    return TaskView(
        status=status,
        bytes=int(data.get("bytes_transferred") or 0),
        rate=float(data.get("effective_bytes_per_second") or 0),
        faults=int(data.get("faults") or 0),
        skipped=int(data.get("files_skipped") or 0),
        nice=words.clean(nice),
        details=words.clean(str(data.get("nice_status_details") or "")),
        fatal=": ".join(
            str(fatal[key]) for key in ("code", "description") if fatal.get(key)
        ),
        seconds=_seconds(data.get("request_time"), data.get("completion_time")),
    )


def _seconds(began: object, ended: object) -> float:
    if not (isinstance(began, str) and isinstance(ended, str)):
        return 0.0
    taken = datetime.fromisoformat(ended) - datetime.fromisoformat(began)
    return max(taken.total_seconds(), 0.0)


def _entry(one: Mapping[str, Any]) -> Entry:
    plain = one["type"] == "file" and not one.get("link_target")
    return Entry(plain=plain, bytes=int(one.get("size") or 0))
