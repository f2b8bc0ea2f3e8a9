"""Signed URLs of a bucket, asked with nothing but the standard library.

Only the statuses 200 and 206 are success. No redirect is followed, and no error text
holds an address: a signed URL is a secret.
"""

from __future__ import annotations

import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

BLOCK = 1 << 20
_SILENCE_S = 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CODE = re.compile(rb"<Code>(\w{1,60})</Code>")
_EXPIRED = (400, 401, 403)
_LATER = (408, 425, 429)


class LineFault(Exception):
    """The line or the service failed; another try may do."""

    lasting = False


class Refusal(LineFault):
    """The service takes this URL for no good; a fresh one may be."""


class NotThere(Exception):
    """There is no such object, or it is not the one that was promised."""


class Unusable(LineFault):
    """No other try can do."""

    lasting = True


class Service:
    """One origin, contacted by request after request.

    Args:
        origin: Scheme, host and port.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self.host = urlsplit(origin).netloc
        self._opener = _opener(is_loopback(origin))

    def get(self, target: str, start: int, length: int) -> Iterator[bytes]:
        """Return an object from `start` on, in blocks.

        Args:
            target: Path and query of its URL.
            start: Bytes that are there already.
            length: Bytes of the whole object.

        Raises:
            LineFault: The line broke, or the service does not answer well.
            NotThere: There is no such object, or one of another size.
        """
        request = self._request(target, "GET")
        if start:
            request.add_header("Range", f"bytes={start}-")
        with self._answer(request) as answer:
            _check_range(answer, start, length)
            left = length - start
            while left:
                block = answer.read(min(BLOCK, left))
                if not block:
                    raise LineFault(f"{self.host} broke off after a part")
                left -= len(block)
                yield block

    def put(self, target: str, body: Iterable[bytes], length: int) -> None:
        """Store an object.

        Args:
            target: Path and query of its URL.
            body: Its bytes, in blocks.
            length: How many they are.

        Raises:
            LineFault: It was not stored.
        """
        request = self._request(target, "PUT")
        request.data = body
        request.add_header("Content-Length", str(length))
        request.add_header("Content-Type", "application/octet-stream")
        with self._answer(request) as answer:
            answer.read()

    def reach(self) -> int:
        """Return the status of an answer, any answer: the host can be reached.

        Raises:
            LineFault: There is none.
        """
        request = self._request("/", "HEAD")
        try:
            with self._told(), self._opener.open(request, timeout=10.0) as answer:
                return int(answer.status)
        except _Answered as answered:
            return answered.status

    def _request(self, target: str, method: str) -> urllib.request.Request:
        return urllib.request.Request(  # noqa: S310 - the policy allows http(s) only
            self._origin + target, method=method
        )

    @contextmanager
    def _answer(
        self, request: urllib.request.Request
    ) -> Iterator[http.client.HTTPResponse]:
        try:
            with (
                self._told(),
                self._opener.open(request, timeout=_SILENCE_S) as answer,
            ):
                _only_success(answer)
                yield answer
        except _Answered as answered:
            raise self._meaning(answered) from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the library raises into words without addresses."""
        try:
            yield
        except urllib.error.HTTPError as error:
            raise _Answered(error.code, _code(error)) from None
        except urllib.error.URLError as error:
            raise self._fault(error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._fault(error) from None

    def _fault(self, error: object) -> LineFault:
        if isinstance(error, ssl.SSLCertVerificationError):
            return Unusable(
                f"the certificate of {self.host} can't be verified: "
                f"{error.verify_message}"
            )
        if isinstance(error, OSError):
            words = error.strerror or str(error) or type(error).__name__
            return LineFault(f"{self.host} can't be reached: {words}")
        return LineFault(f"{self.host} broke off ({type(error).__name__})")

    def _meaning(self, answered: _Answered) -> Exception:
        status = answered.status
        words = f"{self.host} answers {status} {answered.code}".rstrip()
        if status in _EXPIRED:
            return Refusal(words)
        if status in (404, 416):
            return NotThere(words)
        if status >= 500 or status in _LATER:
            return LineFault(words)
        if 300 <= status < 400:
            words += ", a redirect, which is not followed"
        return Unusable(words)


class _Answered(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status, self.code = status, code


def is_loopback(origin: str) -> bool:
    """Tell whether an origin is this machine itself."""
    return urlsplit(origin).hostname in _LOOPBACK


def _opener(loopback: bool) -> urllib.request.OpenerDirector:
    """Return what speaks http and https, verifies, and follows nothing."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if loopback else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _code(answer: urllib.error.HTTPError) -> str:
    """Return the word that S3 has for an error; empty: the answer holds none."""
    with answer:
        try:
            found = _CODE.search(answer.read(4096))
        except (OSError, http.client.HTTPException):
            return ""
    return found[1].decode() if found else ""


def _only_success(answer: http.client.HTTPResponse) -> None:
    """Refuse what the library takes for success, and S3 never says."""
    if answer.status not in (200, 206):
        raise _Answered(int(answer.status), "")


def _check_range(answer: http.client.HTTPResponse, start: int, length: int) -> None:
    """Refuse an answer that is not just what was asked for."""
    if start:
        wanted = f"bytes {start}-{length - 1}/{length}"
        if answer.status != 206 or answer.headers.get("Content-Range") != wanted:
            raise NotThere("an object is not of the size that was promised")
    elif answer.status != 200 or answer.length not in (None, length):
        raise NotThere("an object is not of the size that was promised")
