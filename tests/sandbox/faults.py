"""Troubles on purpose.

A test asks for them (`Faults`), the services look them up (`planned_reply`, and the
keys of a collection); they meet in the state on the disk, so a trouble may be planned
while a service is away.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from sandbox.state import Document, State


class Faults:
    """What a test may break, and mend."""

    def __init__(self, state: State) -> None:
        self._state = state

    # --- transfers ----------------------------------------------------------------

    def corrupt(self, collection: str, blocks: int = 1) -> None:
        """Change a byte in each of the next blocks that are written to a collection."""
        self._set(collection, corrupt=blocks)

    def corrupted(self, collection: str) -> int:
        """Return how many blocks were changed so far."""
        return (self._state.get("collections", collection) or {})["corrupted"]

    def deny(self, collection: str, *paths: str) -> None:
        """Refuse these paths and all below them; none: allow all again."""
        self._set(collection, deny=list(paths))

    def offline(self, collection: str, away: bool = True) -> None:
        """Take a collection away, or give it back."""
        self._set(collection, offline=away)

    def slow(self, collection: str, bytes_per_s: float) -> None:
        """Limit what each transfer from or to a collection gets; 0: no limit."""
        self._set(collection, bytes_per_s=bytes_per_s)

    def full(self, collection: str, full: bool = True) -> None:
        """Let a collection have no space left."""
        self._set(collection, full=full)

    def need_consent(self, collection: str, needed: bool = True) -> None:
        """Ask for the collection's own consent (`data_access`) from now on."""
        self._set(collection, data_access=needed)

    def need_session(self, collection: str, **parameters: object) -> None:
        """Ask for a sign-in with these authorization parameters; none: no more.

        Args:
            collection: Its id.
            parameters: As ``session_required_single_domain=["site.example"]``.
        """
        self._set(collection, session=parameters)

    def _set(self, collection: str, **keys: object) -> None:
        self._state.change("collections", collection, lambda it: it.update(keys))

    # --- logins -------------------------------------------------------------------

    def expire_tokens(self) -> None:
        """Let every token that was given out so far be too old; refreshing works."""
        self._tokens(expires=time.time() - 1)

    def revoke_tokens(self) -> None:
        """Make every token worthless, also those that refresh others."""
        self._tokens(revoked=True)
        for word in self._state.all("refresh"):
            self._state.change("refresh", word, lambda it: it.update(revoked=True))

    def token_life(self, seconds: float) -> None:
        """Let tokens live this long from now on."""
        self._state.put("settings", "tokens", {"life": seconds})

    def lock_out(self, client: str, locked: bool = True) -> None:
        """Refuse the secret of a client."""
        self._state.change("users", client, lambda it: it.update(locked=locked))

    def _tokens(self, **keys: object) -> None:
        for word in self._state.all("tokens"):
            self._state.change("tokens", word, lambda it: it.update(keys))

    # --- the services -------------------------------------------------------------

    def reply(
        self,
        request: str,
        status: int,
        *,
        times: int = 1,
        body: Mapping[str, object] | None = None,
        after: bool = False,
    ) -> None:
        """Answer the next requests like this one with an error.

        Args:
            request: A regular expression, as ``POST /v0.10/transfer``.
            status: The HTTP status, as 429 or 502.
            times: How many requests.
            body: The reply; a short one of our own if left out.
            after: Do what was asked, but lose the reply on the way back.
        """
        self._state.put("replies", uuid.uuid4().hex, {
            "request": request, "status": status, "left": times,
            "body": body or {"code": f"Sandbox{status}", "message": "as asked for"},
            "after": after,
        })  # fmt: skip

    def unlimited(self, unlimited: bool = True) -> None:
        """Count no requests: leave out the rate limit of Globus Compute."""
        self._state.put("settings", "rate", {"off": unlimited})

    def skip_allow_list(self, skip: bool = True) -> None:
        """Let the service forget allow-lists, so that the endpoint must refuse."""
        self._state.put("settings", "allow_list", {"skip": skip})


def planned_reply(state: State, method: str, path: str) -> Document | None:
    """Return the error that a request is to get, and count it."""
    for key, plan in state.all("replies").items():
        if plan["left"] <= 0 or not re.match(plan["request"], f"{method} {path}"):
            continue
        with state.alone():
            left = (state.get("replies", key) or plan)["left"]
            if left > 0:
                state.put("replies", key, {**plan, "left": left - 1})
                return plan
    return None


def spoil(state: State, collection: str, block: bytes) -> bytes:
    """Return a block as it is to be written: changed, if that is asked for."""
    if (state.get("collections", collection) or {}).get("corrupt", 0) <= 0:
        return block

    def count(it: dict[str, Any]) -> None:
        it.update(corrupt=it["corrupt"] - 1, corrupted=it["corrupted"] + 1)

    state.change("collections", collection, count)
    return bytes([block[0] ^ 255]) + block[1:]
