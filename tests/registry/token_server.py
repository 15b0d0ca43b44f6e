"""A server of tokens for a real registry: Docker's token authentication (docker/distribution,
docs/spec/auth/token.md, jwt.md and oauth.md).

It signs JSON web tokens with a key that the registry trusts, for accounts with a password.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Dict, List, NamedTuple, Optional
from urllib.parse import parse_qs, urlparse

ISSUER = "tests"
SERVICE = "registry"


class Account(NamedTuple):
    """A password and the beginnings of the repositories' names that it opens."""

    password: str
    repositories: List[str]


class TokenServer:
    """Listens on loopback; "" is the account of those who show no password."""

    def __init__(self, root: Path, accounts: Dict[str, Account]) -> None:
        self.root = root
        self.accounts = accounts
        self.key, self.certificate = root / "token.key", root / "token.crt"
        make_certificate(self.key, self.certificate, "/CN=tokens")
        self.asked: List[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlparse(self.path).query)
                server.answer(self, server.account_of(self.headers.get("Authorization")), query)

            def do_POST(self) -> None:
                query = parse_qs(chunks(self.rfile).decode())
                token = query.get("refresh_token", [""])[0]
                server.answer(self, token.partition("identity-of-")[2] or None, query)

            def log_message(self, *args: Any) -> None:
                """Keep the tests' output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def settings(self) -> str:
        """What a registry's settings say of it."""
        realm = f"http://127.0.0.1:{self.http.server_address[1]}/token"
        return (
            f"auth: {{token: {{realm: {realm}, service: {SERVICE}, issuer: {ISSUER},"
            f" rootcertbundle: {self.certificate}}}}}"
        )

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def account_of(self, header: Optional[str]) -> Optional[str]:
        """The account that a header proves; "" without one, None when it is wrong."""
        if header is None:
            return ""
        name, _, password = base64.b64decode(header.partition(" ")[2]).decode().partition(":")
        account = self.accounts.get(name)
        return name if account and account.password == password else None

    def answer(
        self, request: BaseHTTPRequestHandler, name: Optional[str], query: Dict[str, List[str]]
    ) -> None:
        self.asked.append(name or "")
        if name is None:
            reply(request, 401, {"errors": [{"code": "UNAUTHORIZED"}]})
            return
        scopes = [scope for text in query.get("scope", []) for scope in text.split()]
        access = [self._grant(name, scope) for scope in scopes]
        token = self._sign({"sub": name, "access": [each for each in access if each]})
        reply(request, 200, {"token": token, "access_token": token, "expires_in": 300})

    def _grant(self, name: str, scope: str) -> Optional[Dict[str, Any]]:
        kind, repository, _ = scope.split(":", 2)
        account = self.accounts.get(name, Account("", []))
        if not any(repository.startswith(start) for start in account.repositories):
            return None
        return {"type": kind, "name": repository, "actions": ["pull"]}

    def _sign(self, claims: Dict[str, Any]) -> str:
        now = int(time.time())
        more = {"iss": ISSUER, "aud": SERVICE, "nbf": now - 60, "iat": now, "exp": now + 300}
        der = subprocess.run(
            ["openssl", "x509", "-in", self.certificate, "-outform", "DER"],
            check=True,
            capture_output=True,
        ).stdout
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        documents = (header, {**claims, **more, "jti": os.urandom(8).hex()})
        text = ".".join(unpadded(json.dumps(each).encode()) for each in documents)
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.key],
            input=text.encode(),
            check=True,
            capture_output=True,
        ).stdout
        return f"{text}.{unpadded(signature)}"


def make_certificate(key: Path, certificate: Path, subject: str) -> None:
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    argv += ["-subj", subject, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(argv, check=True, capture_output=True)


def chunks(stream: IO[bytes]) -> bytes:
    """A body in chunks (RFC 9112, 7.1): skopeo does not say how long its question is."""
    content = b""
    while size := int(stream.readline(), 16):
        content += stream.read(size + 2)[:-2]
    return content


def unpadded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def reply(request: BaseHTTPRequestHandler, status: int, document: Any) -> None:
    body = json.dumps(document).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
