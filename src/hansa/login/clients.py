"""The Globus clients that gateway and mover work with.

None of them ever asks a person: where a login is missing, they raise a `LoginError`
that names the command. All of it blocks; call it on threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hansa.login.extra import extra
from hansa.login.scopes import transfer_scope, uuid

if TYPE_CHECKING:
    import globus_compute_sdk
    import globus_sdk


def transfer_client(collections: Iterable[str] = ()) -> globus_sdk.TransferClient:
    """Return a client of Globus Transfer.

    A client that is kept sees later logins too; it may be used by one thread at a time.

    Args:
        collections: Ids of the mapped collections that need a ``data_access`` consent.

    Raises:
        LoginError: Nobody is logged in; the hint has the command.
        GatewayError: Globus Auth can't be reached (client apps only).
        PluginError: The extra `globus` is not installed.
    """
    with extra():
        import globus_sdk  # noqa: PLC0415 - an extra

        from hansa.login.authorizers import authorizer  # noqa: PLC0415
    needed = [uuid(one) for one in collections]
    return globus_sdk.TransferClient(
        authorizer=authorizer(
            globus_sdk.TransferClient.resource_server,
            transfer_scope(needed),
            needed,
        )
    )


def compute_client() -> globus_compute_sdk.Client:
    """Return a client of Globus Compute that writes and reads JSON only.

    It does not compare its version with the service's. A client that is kept sees
    later logins too. Its `authorizer` and `web_service_address` may serve other clients
    of the same service.

    Raises:
        LoginError: Nobody is logged in; the hint has the command.
        GatewayError: Globus Auth can't be reached (client apps only).
        PluginError: The extra `globus` is not installed.
    """
    with extra():
        import globus_compute_sdk  # noqa: PLC0415 - an extra
        from globus_compute_sdk.serialize import (  # noqa: PLC0415 - an extra
            ComputeSerializer,
            JSONData,
        )
        from globus_sdk.scopes import ComputeScopes  # noqa: PLC0415 - an extra

        from hansa.login.authorizers import authorizer  # noqa: PLC0415
    made = globus_compute_sdk.Client(
        do_version_check=False,
        authorizer=authorizer(ComputeScopes.resource_server, str(ComputeScopes.all)),
    )
    # Its own look-up does not know the variable that leads globus-sdk elsewhere.
    made.web_service_address = os.environ.get(
        "GLOBUS_SDK_SERVICE_URL_COMPUTE", made.web_service_address
    ).rstrip("/")
    serializer = ComputeSerializer(strategy_data=JSONData)
    # The constructor's list must hold a deserializer of code as well, which would run
    # what an answer brings.
    serializer.allowed_deserializer_types = {JSONData}
    made.fx_serializer = serializer
    return made


def auth_client() -> globus_sdk.AuthClient:
    """Return a client of Globus Auth, which knows who is logged in.

    Raises:
        LoginError: Nobody is logged in; the hint has the command.
        GatewayError: Globus Auth can't be reached (client apps only).
        PluginError: The extra `globus` is not installed.
    """
    with extra():
        import globus_sdk  # noqa: PLC0415 - an extra
        from globus_sdk.scopes import AuthScopes  # noqa: PLC0415 - an extra

        from hansa.login.authorizers import authorizer  # noqa: PLC0415
    scope = f"{AuthScopes.openid} {AuthScopes.profile}"
    return globus_sdk.AuthClient(
        authorizer=authorizer(AuthScopes.resource_server, scope)
    )
