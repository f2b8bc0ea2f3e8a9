"""Globus Auth: who calls, with which tokens; logins of programs and of people.

Programs log in with a client id and a secret. People sign in on a page that in truth
asks them nothing; they are then the experimenter, who may come as a program, too.
Tokens remember the whole scope that was asked for: consents are what it has.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from typing import Any
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Blueprint, Response, g, jsonify, redirect, request
from globus_sdk.scopes import Scope, ScopeParser

from sandbox.state import Document, State

COMPUTE = "funcx_service"
TRANSFER = "transfer.api.globus.org"
GROUPS = "groups.api.globus.org"
AUTH = "auth.globus.org"
COMPUTE_SCOPE = (
    "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"
)
TRANSFER_SCOPE = "urn:globus:auth:scope:transfer.api.globus.org:all"
TOKEN_LIFE = 172_800.0
EXPERIMENTER = "experimenter@sandbox.example"
PROVIDER = "00000000-0000-4000-8000-0000000000aa"

Reply = Response | tuple[Response, int]


def server_of(scope: str) -> str:
    """Return the resource server of a scope."""
    if scope == COMPUTE_SCOPE:
        return COMPUTE
    return next((one for one in (TRANSFER, GROUPS) if f":{one}:" in scope), AUTH)


def data_access(collection: str) -> str:
    """Return the scope of a collection that wants a consent of its own."""
    return f"https://auth.globus.org/scopes/{collection}/data_access"


def add_user(state: State, name: str, *, secret: str = "") -> Document:
    """Make an identity; with a secret it is a program that logs in with it."""
    sub = str(uuid.uuid4())
    user = {"sub": sub, "username": name, "secret": secret}
    state.put("users", sub, user)
    return user


def identity(user: Document) -> Document:
    """Return what Globus Auth tells of a user."""
    return {
        "id": user["sub"],
        "sub": user["sub"],
        "username": user["username"],
        "preferred_username": user["username"],
        "name": user["username"].partition("@")[0],
        "email": user["username"],
        "organization": "sandbox",
        "status": "used",
        "identity_type": "login",
        "identity_provider": PROVIDER,
        "identity_provider_display_name": "sandbox",
        "last_authentication": int(time.time()),
    }


def caller(state: State, server: str) -> Document | None:
    """Return the token document of this request, or None if it has no valid one."""
    kind, _, word = request.headers.get("Authorization", "").partition(" ")
    token = state.get("tokens", word) if kind == "Bearer" else None
    if token is None or token["revoked"] or token["expires"] <= time.time():
        return None
    return token if token["server"] == server else None


class Tokens:
    """Gives tokens out and keeps the key that signs who somebody is."""

    def __init__(self, state: State, issuer: str) -> None:
        self.state, self.issuer = state, issuer
        kept = state.get("settings", "key")
        if kept is None:
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            kept = {"pem": key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode()}  # fmt: skip
            state.put("settings", "key", kept)
        loaded = serialization.load_pem_private_key(kept["pem"].encode(), None)
        assert isinstance(loaded, rsa.RSAPrivateKey)
        self._key = loaded

    def jwk(self) -> Document:
        """Return the public key, as JSON."""
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key())
        return {**json.loads(public), "kid": "sandbox", "use": "sig", "alg": "RS256"}

    def grant(
        self, user: Document, client: str, scopes: list[Scope], grant: Document
    ) -> Document:
        """Make one token for each resource server; return the reply."""
        servers: dict[str, list[Scope]] = {}
        for scope in scopes:
            servers.setdefault(server_of(scope.scope_string), []).append(scope)
        made = [
            self._token(user, client, server, asked, grant)
            for server, asked in servers.items()
        ]
        first = {**made[0], "other_tokens": made[1:]}
        if any(scope.scope_string == "openid" for scope in scopes):
            first["id_token"] = self._id_token(user, client)
        return first

    def _token(
        self, user: Document, client: str, server: str, scopes: list[Scope],
        grant: Document,
    ) -> Document:  # fmt: skip
        life = (self.state.get("settings", "tokens") or {}).get("life", TOKEN_LIFE)
        token = {
            "user": user["sub"],
            "client": client,
            "server": server,
            "scope": " ".join(map(str, scopes)),
            "session": grant.get("session", {}),
            "revoked": False,
        }
        word = uuid.uuid4().hex
        self.state.put("tokens", word, {**token, "expires": time.time() + life})
        reply = {
            "access_token": word,
            "scope": " ".join(scope.scope_string for scope in scopes),
            "resource_server": server,
            "expires_in": life,
            "token_type": "Bearer",
        }
        if grant.get("refresh"):
            reply["refresh_token"] = grant["refresh"]
        elif grant.get("offline"):
            reply["refresh_token"] = uuid.uuid4().hex
            self.state.put("refresh", reply["refresh_token"], token)
        return reply

    def _id_token(self, user: Document, client: str) -> str:
        now = int(time.time())
        claims = {**identity(user), "iss": self.issuer, "aud": client, "iat": now}
        claims["exp"] = now + 3600
        return jwt.encode(claims, self._key, "RS256", headers={"kid": "sandbox"})


def refusal(code: str, status: int = 400) -> Reply:
    """Return an error as OAuth has it."""
    return jsonify({"error": code, "error_description": code}), status


def client_of(state: State) -> tuple[str, Document | None]:
    """Return the client id of a request for tokens; and the user of a program.

    A native app has no secret and no user.
    """
    header = request.headers.get("Authorization", "")
    if not header.startswith("Basic "):
        return request.form.get("client_id", ""), None
    client, _, secret = base64.b64decode(header[6:]).decode().partition(":")
    user = state.get("users", client)
    good = user is not None and user["secret"] == secret and secret
    return client, user if good and not (user or {}).get("locked") else None


def blueprint(state: State, issuer: str) -> Blueprint:
    """Make the routes of Globus Auth."""
    routes, tokens = Blueprint("auth", __name__), Tokens(state, issuer)
    Logins(state, tokens).add(routes)
    _people(routes, state)
    _facts(routes, state, tokens)
    return routes


class Logins:
    """How programs and people come by tokens, and get rid of them."""

    def __init__(self, state: State, tokens: Tokens) -> None:
        self._state, self._tokens = state, tokens

    def add(self, routes: Blueprint) -> None:
        """Add the routes."""
        routes.post("/v2/oauth2/token")(self.token)
        routes.post("/v2/oauth2/token/revoke")(self.revoke)

    def token(self) -> Reply:
        client, user = client_of(self._state)
        kind = request.form.get("grant_type", "")
        if kind == "client_credentials":
            if user is None:
                return refusal("invalid_client", 401)
            scopes = ScopeParser.parse(request.form.get("scope", "") or COMPUTE_SCOPE)
            return jsonify(self._tokens.grant(user, client, scopes, {}))
        if kind == "authorization_code":
            return self._by_code(client)
        if kind == "refresh_token":
            return self._by_refresh(client)
        return refusal("unsupported_grant_type")

    def _by_code(self, client: str) -> Reply:
        code = request.form.get("code", "")
        grant = self._state.get("codes", code)
        proof = hashlib.sha256(request.form.get("code_verifier", "").encode()).digest()
        word = base64.urlsafe_b64encode(proof).decode().rstrip("=")
        if grant is None or grant["client"] != client or grant["challenge"] != word:
            return refusal("invalid_grant")
        self._state.drop("codes", code)
        return self._grant(client, grant)

    def _by_refresh(self, client: str) -> Reply:
        word = request.form.get("refresh_token", "")
        old = self._state.get("refresh", word)
        if old is None or old["revoked"] or old["client"] != client:
            return refusal("invalid_grant")
        return self._grant(client, {**old, "refresh": word})

    def _grant(self, client: str, grant: Document) -> Reply:
        user = self._state.get("users", grant["user"])
        assert user is not None
        scopes = ScopeParser.parse(grant["scope"])
        return jsonify(self._tokens.grant(user, client, scopes, grant))

    def revoke(self) -> Reply:
        word = request.form.get("token", "")
        for kind in ("tokens", "refresh"):
            if self._state.get(kind, word) is not None:
                self._state.change(kind, word, lambda it: it.update(revoked=True))
        return jsonify({"active": False})


SESSION = (
    "session_required_identities",
    "session_required_single_domain",
    "session_required_policies",
    "session_required_mfa",
)


def _people(routes: Blueprint, state: State) -> None:
    @routes.get("/v2/oauth2/authorize")
    def authorize() -> Any:
        asked = request.args
        person = next(
            user
            for user in state.all("users").values()
            if user["username"] == EXPERIMENTER
        )
        session = {name: asked[name].split(",") for name in SESSION if name in asked}
        code = uuid.uuid4().hex
        state.put("codes", code, {
            "client": asked.get("client_id", ""),
            "challenge": asked.get("code_challenge", ""),
            "scope": asked.get("scope", ""),
            "offline": asked.get("access_type") == "offline",
            "user": person["sub"],
            "session": session,
        })  # fmt: skip
        for scope in ScopeParser.parse(asked.get("scope", "")):
            _consent(state, person, asked.get("client_id", ""), scope, [])
        back = asked.get("redirect_uri", "")
        here = back.startswith(("http://localhost:", "http://127.0.0.1:"))
        if here and "/v2/web/auth-code" not in back:
            words = {"code": code, "state": asked.get("state", "")}
            return redirect(f"{back}?{urlencode(words)}")
        return Response(f"{code}\n", mimetype="text/plain")


def _consent(
    state: State, user: Document, client: str, scope: Scope, path: list[int]
) -> None:
    """Note that a person agreed to a scope and to all that hang on it."""
    number = len(state.all("consents")) + 1
    path = [*path, number]
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    state.put("consents", str(number), {
        "id": number,
        "client": client,
        "scope": str(uuid.uuid5(uuid.NAMESPACE_URL, scope.scope_string)),
        "scope_name": scope.scope_string,
        "effective_identity": user["sub"],
        "dependency_path": path,
        "status": "approved",
        "allows_refresh": True,
        "auto_approved": False,
        "atomically_revocable": scope.optional,
        "created": now,
        "updated": now,
        "last_used": now,
    })  # fmt: skip
    for one in scope.dependencies:
        _consent(state, user, client, one, path)


def _facts(routes: Blueprint, state: State, tokens: Tokens) -> None:
    @routes.get("/.well-known/openid-configuration")
    def configuration() -> Reply:
        base = tokens.issuer
        return jsonify({
            "issuer": base,
            "jwks_uri": f"{base}/jwk.json",
            "authorization_endpoint": f"{base}/v2/oauth2/authorize",
            "token_endpoint": f"{base}/v2/oauth2/token",
            "userinfo_endpoint": f"{base}/v2/oauth2/userinfo",
            "id_token_signing_alg_values_supported": ["RS256"],
        })  # fmt: skip

    @routes.get("/jwk.json")
    def keys() -> Reply:
        return jsonify({"keys": [tokens.jwk()]})

    @routes.get("/v2/oauth2/userinfo")
    def userinfo() -> Reply:
        mine = identity(g.user)
        return jsonify({**mine, "identity_set": [mine]})

    @routes.get("/v2/api/identities")
    def identities() -> Reply:
        ids = request.args.get("ids", "").split(",")
        names = request.args.get("usernames", "").split(",")
        found = [
            identity(user)
            for user in state.all("users").values()
            if user["sub"] in ids or user["username"] in names
        ]
        return jsonify({"identities": found})

    @routes.get("/v2/api/identities/<sub>/consents")
    def consents(sub: str) -> Reply:
        mine = [
            one
            for one in state.all("consents").values()
            if one["effective_identity"] == sub
        ]
        return jsonify({"consents": mine})
