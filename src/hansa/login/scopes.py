"""What Hansa asks of Globus Auth, and for which service."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hansa.core.errors import UsageError
from hansa.login.extra import extra

_UUID_PARTS = (8, 4, 4, 4, 12)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a login shall allow.

    Attributes:
        transfer: Moving files.
        compute: Calling the function at the facilities' endpoints.
        collections: Ids of the collections that want a consent of their own
            (``data_access``): mapped ones that are not of high assurance.
    """

    transfer: bool = True
    compute: bool = True
    collections: tuple[str, ...] = ()

    def scopes(self) -> list[str]:
        """Return the scopes, those for Globus Auth itself first.

        ``view_identity_set`` tells when the person last logged in.
        """
        with extra():
            from globus_sdk.scopes import (  # noqa: PLC0415 - an extra
                AuthScopes,
                ComputeScopes,
            )
        wanted = [
            str(AuthScopes.openid),
            str(AuthScopes.profile),
            str(AuthScopes.view_identity_set),
        ]
        if self.transfer:
            wanted.append(transfer_scope(self.collections))
        if self.compute:
            wanted.append(str(ComputeScopes.all))
        return wanted


def transfer_scope(collections: Iterable[str]) -> str:
    """Return the scope of Globus Transfer with the consents of some collections.

    Raises:
        UsageError: One of them is no UUID.
    """
    with extra():
        from globus_sdk.scopes import (  # noqa: PLC0415 - an extra
            GCSCollectionScopes,
            TransferScopes,
        )
    needs = [
        GCSCollectionScopes(one).data_access.with_optional(True)
        for one in sorted({uuid(one) for one in collections})
    ]
    return str(TransferScopes.all.with_dependencies(needs))


def uuid(text: str) -> str:
    """Return an id in lower case.

    Raises:
        UsageError: It is no UUID.
    """
    parts = text.strip().lower().split("-")
    hexed = all(set(part) <= set("0123456789abcdef") for part in parts)
    if not hexed or tuple(map(len, parts)) != _UUID_PARTS:
        raise UsageError(
            f"{text!r} is no id of Globus.",
            hint="An id looks like 6c54cade-bde5-45c1-bdea-f4bd71dba2cc; copy it from "
            "the page of the collection, endpoint or client at app.globus.org.",
        )
    return "-".join(parts)
