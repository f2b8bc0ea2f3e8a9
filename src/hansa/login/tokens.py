"""The file of tokens: globus-sdk's own storage, replaced as a whole under a lock.

Imported only where the extra `globus` is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from globus_sdk.token_storage import JSONTokenStorage, TokenStorageData

from hansa.core.errors import LoginError
from hansa.login import folder


class _Storage(JSONTokenStorage):
    @contextmanager
    def user_only_umask(self) -> Iterator[None]:
        """Leave the umask alone: it is of the whole process, whose threads write too.

        The folder is closed to others, and `folder.replace` sets the mode.
        """
        yield


class Tokens:
    """What is stored for one client in one Globus environment.

    Args:
        client_id: The client that the tokens were given to.
    """

    def __init__(self, client_id: str) -> None:
        self._namespace = f"{folder.environment()}/{client_id}"

    def read(self) -> dict[str, TokenStorageData]:
        """Return all tokens by resource server; empty: nobody is logged in.

        Raises:
            LoginError: Others can read the file, or it is damaged.
        """
        folder.check_private()
        file = folder.tokens_path()
        if not file.exists():
            return {}
        try:
            return self._storage(file).get_token_data_by_resource_server()
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            # No cause and no words of it: they may hold a part of the file.
            raise LoginError(
                f"{file} is damaged ({type(error).__name__}).",
                hint="Run `hansa logout`, then `hansa login`.",
            ) from None

    def write(self, tokens: Mapping[str, TokenStorageData]) -> None:
        """Add tokens, each in the place of an older one for the same server."""
        with folder.lock():
            self._put(tokens)

    def renew(self, old: TokenStorageData, new: TokenStorageData) -> TokenStorageData:
        """Put a refreshed token in its place, unless somebody logged in meanwhile.

        Returns:
            What counts now.
        """
        with folder.lock():
            found = self.read().get(old.resource_server)
            if found is None or found.refresh_token != old.refresh_token:
                return found or new
            self._put({new.resource_server: new})
            return new

    def forget(self) -> None:
        """Remove the file; nobody is logged in then."""
        with folder.lock():
            folder.tokens_path().unlink(missing_ok=True)

    def _put(self, tokens: Mapping[str, TokenStorageData]) -> None:
        with folder.copy_of(folder.tokens_path()) as aside:
            self._storage(aside).store_token_data_by_resource_server(tokens)

    def _storage(self, file: Path) -> JSONTokenStorage:
        return _Storage(file, namespace=self._namespace)
