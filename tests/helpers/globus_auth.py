"""A tiny Globus Auth on loopback, for unit tests; the sandbox has a whole one.

It keeps everything in plain attributes, so that a test can look at it, and break it.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

CLIENT = "6c54cade-bde5-45c1-bdea-f4bd71dba2cc"
APP = "a11ce000-0000-4000-8000-000000000001"
PERSON = "be0e0000-0000-4000-8000-000000000002"
SECRET = "s3cr3t-of-the-app"  # noqa: S105 - of a pretended app
COMPUTE, TRANSFER = "funcx_service", "transfer.api.globus.org"
_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_SCOPE = re.compile(r"[^\s\[]+(?:\[[^\]]*\])?")


@dataclass
class GlobusAuth:
    """What the service knows, and how it shall behave."""

    identity: str = PERSON
    life: float = 172_800.0
    refreshable: bool = True
    withheld: set[str] = field(default_factory=set)
    last_login: float = field(default_factory=time.time)
    codes: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, dict] = field(default_factory=dict)
    refreshes: dict[str, dict] = field(default_factory=dict)
    consents: set[str] = field(default_factory=set)
    documents: dict[str, dict] = field(default_factory=dict)
    revoke_status: int = 200
    asked: list[tuple[str, dict]] = field(default_factory=list)
    url: str = ""

    def browse(self, address: str) -> str:
        """Be the person who opens the address and allows all; return the code."""
        query = {k: v[0] for k, v in parse_qs(urlsplit(address).query).items()}
        self.asked.append(("authorize", query))
        code = f"code-{uuid.uuid4().hex}"
        self.codes[code] = query["scope"]
        self.consents |= set(
            re.findall(r"scopes/([0-9a-f-]{36})/data_", query["scope"])
        )
        return code

    def grants(self, kind: str) -> list[dict]:
        """Return the requests for tokens of a kind."""
        found = [form for what, form in self.asked if what == "token"]
        return [form for form in found if form["grant_type"] == kind]

    def expire(self) -> None:
        """Let no access token be taken any more."""
        self.tokens.clear()

    def secrets(self) -> set[str]:
        """Return all that must be seen nowhere."""
        return {SECRET, *self.tokens, *self.refreshes, *self.codes}

    def grant(self, scope: str, who: str, *, offline: bool) -> dict:
        by_server: dict[str, list[str]] = {}
        for one in _SCOPE.findall(scope):
            by_server.setdefault(_server(one), []).append(one)
        made = []
        for server, scopes in by_server.items():
            if server in self.withheld:
                continue
            access, refresh = f"access-{uuid.uuid4().hex}", f"again-{uuid.uuid4().hex}"
            about = {"server": server, "scope": " ".join(scopes), "who": who}
            self.tokens[access] = about
            one = {
                "access_token": access,
                "scope": " ".join(name.split("[")[0] for name in scopes),
                "resource_server": server,
                "expires_in": int(self.life),
                "token_type": "Bearer",
            }
            if offline and self.refreshable:
                self.refreshes[refresh] = about
                one["refresh_token"] = refresh
            made.append(one)
        return {**made[0], "other_tokens": made[1:]}

    def id_token(self) -> str:
        now = int(time.time())
        claims = {"sub": self.identity, "aud": CLIENT, "iss": self.url}
        claims |= {"iat": now, "exp": now + 600}
        return jwt.encode(claims, _KEY, "RS256", headers={"kid": "1"})


def _server(scope: str) -> str:
    if scope.startswith(f"urn:globus:auth:scope:{TRANSFER}:"):
        return TRANSFER
    return COMPUTE if "scopes/facd7ccc-" in scope else "auth.globus.org"


class _Handler(BaseHTTPRequestHandler):
    auth: GlobusAuth

    def log_message(self, *_) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/.well-known/openid-configuration":
            known = {"jwks_uri": f"{self.auth.url}/jwk.json", "issuer": self.auth.url}
            known["id_token_signing_alg_values_supported"] = ["RS256"]
            return self._answer(200, known)
        if path == "/jwk.json":
            key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_KEY.public_key()))
            return self._answer(200, {"keys": [{**key, "kid": "1", "alg": "RS256"}]})
        token = self.auth.tokens.get(self.headers.get("Authorization", "")[7:])
        if token is None:
            return self._answer(401, {"code": "AuthenticationFailed", "message": "no"})
        self.auth.asked.append((path, token))
        return self._facts(path, token)

    def _facts(self, path: str, token: dict) -> None:
        auth = self.auth
        if path == "/v2/oauth2/userinfo":
            me = {"sub": token["who"], "preferred_username": "ada@anl.gov"}
            known = [{**me, "last_authentication": int(auth.last_login)}]
            return self._answer(200, {**me, "name": "Ada", "identity_set": known})
        if path == f"/v2/api/identities/{auth.identity}/consents":
            named = "https://auth.globus.org/scopes/{}/data_access"
            given = [
                {"scope_name": named.format(one), "status": "approved"}
                for one in sorted(auth.consents)
            ]
            return self._answer(200, {"consents": given})
        found = auth.documents.get(path.removeprefix("/v0.10/endpoint/"))
        missing = {"code": "EndpointNotFound", "message": "No such endpoint"}
        return self._answer(200, found) if found else self._answer(404, missing)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = {key: value[0] for key, value in parse_qs(body).items()}
        what = "revoke" if self.path.endswith("/revoke") else "token"
        self.auth.asked.append((what, form))
        if what == "revoke":
            for kept in (self.auth.tokens, self.auth.refreshes):
                kept.pop(form["token"], None)
            return self._answer(self.auth.revoke_status, {"active": False})
        answer = self._granted(form)
        refusal = {"error": "invalid_grant", "error_description": "It is over."}
        return self._answer(200, answer) if answer else self._answer(400, refusal)

    def _granted(self, form: dict) -> dict | None:
        auth, kind = self.auth, form["grant_type"]
        if kind == "client_credentials":
            known = base64.b64decode(self.headers["Authorization"][6:]).decode()
            good = known == f"{APP}:{SECRET}"
            return auth.grant(form["scope"], APP, offline=False) if good else None
        if kind == "authorization_code":
            scope = auth.codes.pop(form["code"], None)
            if scope is None:
                return None
            given = auth.grant(scope, auth.identity, offline=True)
            return {**given, "id_token": auth.id_token()}
        old = auth.refreshes.get(form["refresh_token"])
        if old is None:
            return None
        given = auth.grant(old["scope"], old["who"], offline=False)
        return {**given, "refresh_token": form["refresh_token"]}

    def _answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serve(auth: GlobusAuth) -> ThreadingHTTPServer:
    """Start the service on a free port; the caller shuts it down."""
    handler = type("Handler", (_Handler,), {"auth": auth})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    auth.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@contextmanager
def running(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[GlobusAuth]:
    """Serve, and let this process and its children believe that it is Globus."""
    auth = GlobusAuth()
    server = serve(auth)
    for name in ("ID", "SECRET"):
        patch.delenv(f"HANSA_GLOBUS_CLIENT_{name}", raising=False)
    patch.delenv("GLOBUS_SDK_SERVICE_URL_COMPUTE", raising=False)
    patch.setenv("HANSA_GLOBUS_DIR", str(folder))
    patch.setenv("GLOBUS_SDK_ENVIRONMENT", "local")
    patch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", auth.url)
    patch.setenv("GLOBUS_SDK_SERVICE_URL_TRANSFER", auth.url)
    try:
        yield auth
    finally:
        server.shutdown()
        server.server_close()
