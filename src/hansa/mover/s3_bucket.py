"""The bucket, as the server sees it: the only one here with credentials.

Only this module needs the extra ``s3``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from hansa.core.errors import TransferError
from hansa.mover.s3_options import S3Options

_BLOCK = 1 << 20
_CHUNK = 8 << 20
"""Bytes of one request of a multipart upload; the service asks for 5 MiB at least."""
_AT_ONCE = 2
_PATIENCE = timedelta(seconds=60)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")


Method = Literal["GET", "PUT"]


class Bucket:
    """A bucket and what is done with it; every call blocks.

    Args:
        options: Which bucket.
    """

    def __init__(self, options: S3Options) -> None:
        self._options = options
        self._store = _open(options)

    @cached_property
    def origin(self) -> str:
        """Return scheme, host and port of all URLs, as ``https://host``."""
        found = urlsplit(self._signed("GET", ["origin"], 60.0)[0])
        return f"{found.scheme}://{found.netloc}"

    def sign(self, method: Method, keys: Sequence[str], expires: float) -> list[str]:
        """Return what leads to objects without credentials.

        Args:
            method: ``GET`` or ``PUT``.
            keys: The objects.
            expires: Seconds for which it is good.

        Returns:
            Path and query of each URL, to follow `origin`. They are secrets.
        """
        found = (urlsplit(url) for url in self._signed(method, keys, expires))
        return [f"{url.path}?{url.query}" for url in found]

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the objects below a folder and their sizes in bytes."""
        with self._told("list"):
            pages = obstore.list(self._store, prefix=folder, chunk_size=1000)
            return {one["path"]: one["size"] for page in pages for one in page}

    def upload(
        self, key: str, path: Path, offset: int, length: int, go_on: Callable[[], bool]
    ) -> None:
        """Store a part of a file; large ones go in a multipart upload.

        Args:
            key: The object.
            path: The file.
            offset: Where the part begins, in bytes.
            length: Its size.
            go_on: Asked between blocks; False gives the upload up.

        Raises:
            TransferError: The service refuses, or does not answer.
            OSError: The file can't be read.
        """
        with path.open("rb") as file:
            file.seek(offset)
            small = length <= _CHUNK
            body = file.read(length) if small else _blocks(file, length, go_on)
            with self._told("write"):
                obstore.put(
                    self._store, key, body, chunk_size=_CHUNK, max_concurrency=_AT_ONCE
                )

    def download(self, key: str) -> Iterator[bytes]:
        """Return an object in blocks of a few MiB.

        Raises:
            FileNotFoundError: There is no such object.
            TransferError: The service refuses, or does not answer.
        """
        with self._told("read", missing=True):
            for block in obstore.get(self._store, key).stream(min_chunk_size=_BLOCK):
                yield bytes(block)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        with self._told("remove from"):
            for first in range(0, len(keys), 1000):
                obstore.delete(self._store, list(keys[first : first + 1000]))

    def _signed(
        self, method: Method, keys: Sequence[str], expires: float
    ) -> Sequence[str]:
        with self._told("sign requests for"):
            urls: Sequence[str] = obstore.sign(
                self._store,
                method,
                list(keys),
                timedelta(seconds=expires),
            )
        return urls

    @contextmanager
    def _told(self, what: str, *, missing: bool = False) -> Iterator[None]:
        """Turn the library's errors into words; they hold more than people need."""
        try:
            yield
        except FileNotFoundError:
            if missing:
                raise
            raise self._failure(what, "it does not exist", transient=False) from None
        except (BaseError, ValueError) as error:
            status, code = _STATUS.search(str(error)), _CODE.search(str(error))
            words = " ".join(found[1] for found in (status, code) if found)
            lasting = status is not None and status[1].startswith(("3", "4"))
            said = f"it answers {words}" if words else "it gives no answer"
            raise self._failure(what, said, transient=not lasting) from None

    def _failure(self, what: str, said: str, *, transient: bool) -> TransferError:
        return TransferError(
            f"The server can't {what} the bucket {self._options.bucket!r}: {said}.",
            hint="Do AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the machine's "
            "role) allow it, and are `bucket`, `region` and `endpoint` of the mover "
            "right?",
            transient=transient,
        )


class GivenUp(TransferError):
    """Nobody wants the upload any more."""


def _blocks(file: Any, length: int, go_on: Callable[[], bool]) -> Iterator[bytes]:
    left = length
    while left:
        if not go_on():
            raise GivenUp("The upload was given up.")
        block = file.read(min(_BLOCK, left))
        if not block:
            raise TransferError(f"{file.name} became shorter while it was sent.")
        left -= len(block)
        yield block


def _open(options: S3Options) -> S3Store:
    given: dict[str, Any] = {"bucket": options.bucket}
    if options.region:
        given["region"] = options.region
    endpoint = options.endpoint or next(
        filter(None, map(os.environ.get, _ENDPOINTS)), ""
    )
    if endpoint:
        given["endpoint"] = endpoint.rstrip("/")
    elif "." not in options.bucket:  # a dot would break the host's certificate
        # The bucket is then part of the host that facilities put on their list.
        given["virtual_hosted_style_request"] = True
    return S3Store(
        config=given,  # type: ignore[arg-type]
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": "10s",
            "timeout": "10m",
        },
        retry_config={"max_retries": 6, "retry_timeout": _PATIENCE},
    )
