"""A real S3 protocol on loopback, from moto, that can also fail as services do."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from paper_facility import site_spec

from hansa.site import rpc
from hansa.site.agent import Agent

BUCKET = "hansa-bucket"
KEYS = {
    "AWS_ACCESS_KEY_ID": "the-server",
    "AWS_SECRET_ACCESS_KEY": "TOPSECRET",
    "AWS_REGION": "us-east-1",
}

Answer = tuple[str, bytes]
Trick = Callable[["Asked"], Answer | None]


@dataclass(frozen=True)
class Asked:
    """A request: its verb and object, whether a signed URL led here, and when made."""

    method: str
    key: str
    signed: bool
    range: str = ""
    made: str = ""


@dataclass
class Service:
    """Moto behind a door that counts, checks the ends of URLs, and plays tricks.

    Attributes:
        trick: Returns a status and a body in place of moto's, or None.
        spoil: Changes the body of an answer to a signed GET; a shorter one breaks off.
    """

    trick: Trick = lambda asked: None
    spoil: Callable[[Asked, bytes], bytes] = lambda asked, body: body
    asked: list[Asked] = field(default_factory=list)
    expired: int = 0

    def start(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log_request(self, *args: Any) -> None:
                pass

        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent
        )
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> dict[str, Any]:
        return {"bucket": BUCKET, "endpoint": f"http://{self.host}"}

    def empty(self) -> None:
        """Forget all objects and requests, and make the bucket anew."""
        from moto.s3.models import s3_backends

        s3_backends.reset()
        self.trick, self.spoil = (lambda asked: None), (lambda asked, body: body)
        self.asked, self.expired = [], 0
        asking = http.client.HTTPConnection(self.host)
        asking.request("PUT", f"/{BUCKET}", body=b"")
        assert asking.getresponse().status == 200
        asking.close()
        self.asked.clear()

    def objects(self) -> set[str]:
        """Return the keys in the bucket, which others may change meanwhile."""
        return set(self._kept())

    def content(self, key: str) -> bytes:
        """Return what an object holds."""
        data: bytes = self._kept()[key].value
        return data

    def _kept(self) -> Mapping[str, Any]:
        from moto.s3.models import s3_backends

        for account in s3_backends.values():
            bucket = account["aws"].buckets.get(BUCKET)
            if bucket is not None:
                kept: Mapping[str, Any] = bucket.keys
                return kept
        return {}

    def change(self, key: str, data: bytes) -> None:
        """Put other bytes in an object's place."""
        from moto.s3.models import s3_backends

        for account in s3_backends.values():
            backend = account["aws"]
            if BUCKET in backend.buckets:
                backend.put_object(BUCKET, key, data)

    def uploads(self) -> Counter[str]:
        """Return how often the server has begun to write each object."""
        return Counter(
            one.key for one in self.asked if one.method == "PUT" and not one.signed
        )

    def fetched(self) -> list[Asked]:
        return [one for one in self.asked if one.method == "GET" and one.signed]

    def delivered(self) -> list[Asked]:
        return [one for one in self.asked if one.method == "PUT" and one.signed]

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        query = parse_qs(environ.get("QUERY_STRING", ""))
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
        signed = "X-Amz-Signature" in query
        method, made = environ["REQUEST_METHOD"], query.get("X-Amz-Date", [""])[0]
        asked = Asked(method, key, signed, environ.get("HTTP_RANGE", ""), made)
        self.asked.append(asked)
        if signed and _is_over(query):
            self.expired += 1
            return _refuse(environ, start, "403 Forbidden", _EXPIRED)
        answer = self.trick(asked)
        if answer is not None:
            return _refuse(environ, start, *answer)
        if not (signed and asked.method == "GET"):
            body: Iterable[bytes] = self._moto(environ, start)
            return body
        return iter(self._spoilt(asked, environ, start))

    def _spoilt(
        self, asked: Asked, environ: dict[str, Any], start: Any
    ) -> Iterator[bytes]:
        body = b"".join(self._moto(environ, start))
        changed = self.spoil(asked, body)
        for first in range(0, len(changed), 1 << 16):
            yield changed[first : first + (1 << 16)]
        if len(changed) < len(body):
            raise ConnectionAbortedError  # the client sees the line break


_EXPIRED = b"<Error><Code>AccessDenied</Code><Message>has expired</Message></Error>"


def _is_over(query: dict[str, list[str]]) -> bool:
    made = datetime.strptime(f"{query['X-Amz-Date'][0]}+0000", "%Y%m%dT%H%M%SZ%z")
    end = made + timedelta(seconds=int(query["X-Amz-Expires"][0]))
    return datetime.now(UTC) > end


def _refuse(
    environ: dict[str, Any], start: Any, status: str, body: bytes
) -> Iterable[bytes]:
    stream = environ["wsgi.input"]
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (block := stream.read(min(left, 1 << 16))):
        left -= len(block)
    start(status, [("Content-Length", str(len(body)))])
    return io.BytesIO(body)


def asking(root: Path, mail: Path, *hosts: str) -> Callable[..., Any]:
    """Return what asks a site agent in this process, as JSON, with these hosts."""
    fields = {"mailbox": str(mail), "exchange": {"hosts": list(hosts)}}
    agent = Agent(site_spec(root, **fields))

    async def ask(request: Mapping[str, object]) -> dict[str, Any]:
        text = json.dumps(request)
        reply = await asyncio.to_thread(lambda: agent.handle(json.loads(text)))
        return rpc.unwrap(json.loads(json.dumps(reply)))

    return ask
