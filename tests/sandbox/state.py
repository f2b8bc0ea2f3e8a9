"""What the services know, on the disk: they may be killed at any moment.

Every read goes to the file, so a test may look at it, or change it, while the service
runs and while it is away.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class State:
    """Tables of JSON documents in one SQLite file that processes share.

    Args:
        path: The file; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._base = sqlite3.connect(
            path, timeout=60, isolation_level=None, check_same_thread=False
        )
        for line in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=OFF",
            "CREATE TABLE IF NOT EXISTS documents (number INTEGER PRIMARY KEY, "
            "kind TEXT, key TEXT, text TEXT, UNIQUE (kind, key))",
        ):
            self._base.execute(line)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._base.close()

    def get(self, kind: str, key: str) -> Document | None:
        """Return one document."""
        with self._lock:
            row = self._base.execute(
                "SELECT text FROM documents WHERE kind = ? AND key = ?", (kind, key)
            ).fetchone()
        return None if row is None else json.loads(row[0])

    def all(self, kind: str) -> dict[str, Document]:
        """Return a table, the oldest document first."""
        with self._lock:
            rows = self._base.execute(
                "SELECT key, text FROM documents WHERE kind = ? ORDER BY number",
                (kind,),
            ).fetchall()
        return {key: json.loads(text) for key, text in rows}

    def put(self, kind: str, key: str, document: Document) -> None:
        """Write one document, in place of what was there."""
        with self._lock:
            self._base.execute(
                "INSERT INTO documents (kind, key, text) VALUES (?, ?, ?) "
                "ON CONFLICT (kind, key) DO UPDATE SET text = excluded.text",
                (kind, key, json.dumps(document)),
            )

    def drop(self, kind: str, key: str) -> None:
        """Forget one document."""
        with self._lock:
            self._base.execute(
                "DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key)
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all others, in this process and in others, from writing."""
        with self._lock:
            if self._base.in_transaction:
                yield
                return
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def change(
        self, kind: str, key: str, how: Callable[[Document], object]
    ) -> Document:
        """Change one document in place and return it; a missing one is empty."""
        with self.alone():
            document = self.get(kind, key) or {}
            how(document)
            self.put(kind, key, document)
        return document

    def note(self, kind: str, **facts: object) -> None:
        """Add a line to a log; `entries` reads it."""
        self.put(kind, uuid.uuid4().hex, {"at": time.time(), **facts})

    def entries(self, kind: str) -> list[Document]:
        """Return a log, the oldest entry first."""
        return list(self.all(kind).values())
