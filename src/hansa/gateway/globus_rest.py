"""The few requests of the Globus Compute service that a gateway needs, one at a time.

All of it blocks; see `globus_service` for who calls it when. The requests are
globus-sdk's own; its client for Compute keeps every result it ever saw, and prints what
it can't read instead of raising it, which a run of weeks can't have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from hansa.core.errors import FacilityError
from hansa.gateway import globus_words as words
from hansa.login.clients import compute_client
from hansa.login.extra import extra
from hansa.login.words import explained

if TYPE_CHECKING:
    import globus_compute_sdk

HTTP_TIMEOUT_S: Final = 15.0
"""Seconds without a word from the service after which a request is given up."""

RESULTS: Final = ["globus_compute_sdk.serialize.JSONData"]
"""How an endpoint may write results."""

_DONE = ("success", "failed", "cancelled")


class Busy(Exception):
    """The service wants fewer requests.

    Attributes:
        wait: Seconds until it takes some again.
    """

    def __init__(self, wait: float) -> None:
        super().__init__(f"busy for {wait:g} s")
        self.wait = wait


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the service knows of a task.

    Attributes:
        status: Its own word for it.
        over: Whether more will never be known.
        result: What the function returned.
        failure: Why it returned nothing, as the endpoint or the service told it.
    """

    status: str
    over: bool = False
    result: object = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task, and the group of tasks that it joined."""

    task: str
    group: str


class Rest(Protocol):
    """A connection to the service; one thread at a time uses it."""

    def submit(
        self,
        endpoint: str,
        function: str,
        arguments: Mapping[str, object],
        group: str | None,
        resources: Mapping[str, int] | None = None,
    ) -> Submitted:
        """Have a function called at an endpoint; the group is made if None is given."""
        ...

    def outcomes(self, tasks: Iterable[str]) -> dict[str, Outcome]:
        """Return what is known of tasks; those that the service does not know lack."""
        ...

    def endpoint(self, endpoint: str) -> dict[str, Any]:
        """Return the description of an endpoint."""
        ...

    def status(self, endpoint: str) -> str:
        """Return ``online`` or ``offline``, or another word of the service."""
        ...

    def allowed(self, endpoint: str) -> list[str] | None:
        """Return the functions that an endpoint may run; None: all of them."""
        ...

    def function(self, function: str) -> dict[str, Any]:
        """Return the description of a registered function, its text included."""
        ...

    def register(self, name: str, text: str, about: str, endpoint: str | None) -> str:
        """Register a function; return its id.

        Args:
            name: What is called in it.
            text: Its source.
            about: One line for people.
            endpoint: The one high-assurance endpoint that it is for; None: public.
        """
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class GlobusRest:
    """`Rest` over HTTPS, as the person or app that is logged in.

    Raises:
        LoginError: Nobody is logged in.
        GatewayError: Globus Auth can't be reached.
        PluginError: The extra `globus` is not installed.
    """

    def __init__(self) -> None:
        self._client = compute_client()
        with extra():
            import globus_sdk  # noqa: PLC0415 - an extra
        from globus_sdk.transport import (  # noqa: PLC0415 - an extra
            RequestsTransport,
            RetryConfig,
        )

        self._transport = RequestsTransport(http_timeout=HTTP_TIMEOUT_S)

        # Once, for a token to be refreshed or a connection to be made anew. That the
        # service is too busy is for all to know who share the limit.
        def connected(kind: Callable[..., T]) -> T:
            return kind(
                base_url=self._client.web_service_address,
                authorizer=self._client.authorizer,
                transport=self._transport,
                retry_config=RetryConfig(
                    max_retries=1,
                    max_sleep=1.0,
                    retry_after_status_codes=(),
                    transient_error_status_codes=(),
                ),
            )

        self._v2 = connected(globus_sdk.ComputeClientV2)
        self._v3 = connected(globus_sdk.ComputeClientV3)

    def submit(
        self,
        endpoint: str,
        function: str,
        arguments: Mapping[str, object],
        group: str | None,
        resources: Mapping[str, int] | None = None,
    ) -> Submitted:
        """See `Rest.submit`.

        Raises:
            Busy: Too many requests.
            FacilityError: What the service says, in our words.
        """
        batch = self._client.create_batch(
            task_group_id=group,
            resource_specification=dict(resources) if resources else None,
            result_serializers=RESULTS,
        )
        batch.add(function, (), dict(arguments))
        with _told(f"asking the endpoint {endpoint}", endpoint, function):
            answer = self._v3.submit(endpoint, batch.prepare())
            return Submitted(answer["tasks"][function][0], answer["task_group_id"])

    def outcomes(self, tasks: Iterable[str]) -> dict[str, Outcome]:
        """See `Rest.outcomes`; raises as `submit` does."""
        with _told("asking for answers"):
            answer = self._v2.get_task_batch(list(tasks))
            found: Mapping[str, Mapping[str, Any]] = answer["results"]
        return {task: outcome(self._client, about) for task, about in found.items()}

    def endpoint(self, endpoint: str) -> dict[str, Any]:
        """See `Rest.endpoint`; raises as `submit` does."""
        with _told(f"asking for the endpoint {endpoint}", endpoint):
            return dict(self._v2.get_endpoint(endpoint).data)

    def status(self, endpoint: str) -> str:
        """See `Rest.status`; raises as `submit` does."""
        with _told(f"asking for the endpoint {endpoint}", endpoint):
            return str(self._v2.get_endpoint_status(endpoint)["status"])

    def allowed(self, endpoint: str) -> list[str] | None:
        """See `Rest.allowed`; raises as `submit` does."""
        with _told(f"asking for the allow-list of {endpoint}", endpoint):
            answer = self._v3.get_endpoint_allowlist(endpoint)
            functions: list[str] | None = answer["functions"]
            return functions if answer["restricted"] else None

    def function(self, function: str) -> dict[str, Any]:
        """See `Rest.function`; raises as `submit` does."""
        with _told(f"asking for the function {function}", function=function):
            return dict(self._v2.get_function(function).data)

    def register(self, name: str, text: str, about: str, endpoint: str | None) -> str:
        """See `Rest.register`; raises as `submit` does."""
        with _told("registering the function", endpoint or ""):
            made: str = self._client.register_source_code(
                text,
                name,
                description=about,
                public=endpoint is None,
                ha_endpoint_id=endpoint,
            )
            return made

    def close(self) -> None:
        """See `Rest.close`."""
        self._transport.close()


def outcome(client: globus_compute_sdk.Client, about: Mapping[str, Any]) -> Outcome:
    """Return a task's document as an outcome; a result that is not JSON is refused."""
    status = str(about.get("status", "unknown")).lower()
    if "result" in about:
        from globus_compute_sdk.errors import SerdeError  # noqa: PLC0415 - an extra

        try:
            result = client.fx_serializer.deserialize(about["result"])
        except (SerdeError, ValueError) as error:
            return Outcome(status, over=True, failure=words.unread(error))
        return Outcome(status, over=True, result=result)
    if status in _DONE or "exception" in about:
        told = about.get("exception") or about.get("reason") or f"The task {status}."
        return Outcome(status, over=True, failure=str(told))
    return Outcome(status)


@contextmanager
def _told(doing: str, endpoint: str = "", function: str = "") -> Iterator[None]:
    """Turn what a client raises into our words."""
    with extra():
        import globus_sdk  # noqa: PLC0415 - an extra
    try:
        yield
    except globus_sdk.GlobusAPIError as error:
        if error.http_status == 429:
            raise Busy(words.retry_after(error.headers.get("Retry-After"))) from error
        said = words.Said.of(error)
        found = words.refused(said, endpoint, function) or explained(error, doing)
        raise found or words.unknown(said, doing) from error
    except globus_sdk.GlobusError as error:
        found = explained(error, doing)
        if found is None:
            raise FacilityError(f"Globus failed while {doing}: {error}.") from error
        raise found from error
    except (LookupError, TypeError, ValueError) as error:
        raise words.nonsense(doing, error) from error
