"""Credentials: the passwords for registries, the site's and a user's own.

A user's are read, and the credential helpers run, in a child that is the user.  What comes back
is a containers-auth.json(5) with one entry: nobody sees more of a user's passwords than it takes.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from typing import IO, Any, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

from hpcwrap import paths, run
from hpcwrap.config import Settings
from hpcwrap.errors import SiteError, UserError
from hpcwrap.image.reference import DEFAULT_REGISTRY, Reference
from hpcwrap.image.rights import as_user
from hpcwrap.job import User

SECONDS = 20.0
"""For all of it: files of a home directory on a network, and a helper that asks a service."""

MAX_FILE = 1 << 20
TOKEN_USER = "<token>"  # noqa: S105  the helpers' word for "this is an identity token"
DOCKER_KEY = "https://index.docker.io/v1/"
DOCKER_HOSTS = (DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io")
NOT_FOUND = "credentials not found"

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class Login(NamedTuple):
    """What a registry is shown: a password, or an identity token to get one-time tokens with."""

    name: str
    password: str
    token: str = ""

    def __repr__(self) -> str:
        return "Login(…)"


def site_auth(settings: Settings) -> bytes:
    """The site's passwords: the content of the setting auth_file, b"" where there is none.

    All of it, since registries.conf may have mirrors with passwords of their own.  Raises
    SiteError, also for a file that everybody may read.
    """
    path = settings.auth_file
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_FILE)
    except OSError as error:
        raise _site_error(path, str(error.strerror)) from None
    if mode & 0o007:
        raise _site_error(path, "everybody may read it", f"chmod 600 {path}")
    try:
        _parse(content)
    except ValueError as error:
        raise _site_error(path, str(error)) from None
    return content


def user_auth(user: User, reference: Reference, seconds: float = SECONDS) -> bytes:
    """A user's password for the registry of a reference, as a containers-auth.json; or b"".

    Root becomes the user for it; everybody else asks for themselves.  Raises UserError when the
    user's files or helpers are broken, SiteError when they take longer than `seconds`.
    """
    if user.uid == 0:
        return b""  # root's own passwords are not for the site's images: auth_file is
    identity = run.Identity(user.uid, user.gid, user.groups) if os.geteuid() == 0 else None
    files = [*([] if identity else _named_files()), *paths.auth_files(user.uid, user.home)]
    found = as_user(
        identity,
        lambda: {"login": _find(files, user, reference)},
        seconds,
        f"cannot get the password of {user.name} for {reference.registry}",
    )
    return _document(reference, Login(*found["login"])) if found["login"] else b""


def _named_files() -> Iterator[str]:
    """The files that the user's own environment names: not for root, whose is a scheduler's."""
    variables = (
        ("REGISTRY_AUTH_FILE", ""),
        ("XDG_RUNTIME_DIR", "containers/auth.json"),
        ("DOCKER_CONFIG", "config.json"),
    )
    for variable, below in variables:
        if os.environ.get(variable):
            yield os.path.join(os.environ[variable], below).rstrip("/")


def _find(files: Sequence[str], user: User, reference: Reference) -> Optional[Login]:
    """The user's login of the first file that has one; runs as the user."""
    for path in files:
        content = _read(path)
        if content is None:
            continue
        try:
            login = _look_up(_parse(content), reference, user)
        except ValueError as error:
            raise UserError(f"cannot read {path}: {error}", "log in again") from None
        if login:
            return login
    return None


def _read(path: str) -> Optional[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE)
    except OSError:
        return None  # not there, or not for this user


def _parse(content: bytes) -> Dict[str, Any]:
    """Raises ValueError, whose text has nothing of the content."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    for name in ("auths", "credHelpers"):
        if not isinstance(document.get(name) or {}, dict):
            raise ValueError(f"its {name} is no JSON object")
    return document


def _look_up(document: Dict[str, Any], reference: Reference, user: User) -> Optional[Login]:
    """The login of one file, in the order of containers/image: helper, password, common helper."""
    helpers = document.get("credHelpers") or {}
    for host in _hosts(reference):
        if host in helpers:
            return _ask_helper(str(helpers[host]), reference, user)
    login = _password(document.get("auths") or {}, reference)
    store = document.get("credsStore")
    if login is None and store and run.find_program(f"docker-credential-{store}"):
        return _ask_helper(str(store), reference, user)
    return login


def _password(entries: Dict[str, Any], reference: Reference) -> Optional[Login]:
    for key in _keys(reference):
        entry = entries.get(key)
        login = _decode(entry) if isinstance(entry, dict) else None
        if login:
            return login
    return None


def _decode(entry: Dict[str, Any]) -> Optional[Login]:
    try:
        text = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("an entry of it is not in base64") from None
    name, _, password = text.partition(":")
    token = str(entry.get("identitytoken") or "")
    # `docker login` with a helper leaves entries without anything in them.
    return Login(name, password.strip("\0"), token) if password or token else None


def _hosts(reference: Reference) -> Sequence[str]:
    return DOCKER_HOSTS if reference.registry == DEFAULT_REGISTRY else (reference.registry,)


def _keys(reference: Reference) -> Iterator[str]:
    """The names that an entry for this image may have, the most special first."""
    path = reference.name
    while "/" in path:
        yield path
        path = path.rpartition("/")[0]
    for host in _hosts(reference):
        yield host
        for scheme in ("https://", "http://"):
            yield from (f"{scheme}{host}{rest}" for rest in ("", "/", "/v1", "/v1/", "/v2/"))


def _ask_helper(name: str, reference: Reference, user: User) -> Optional[Login]:
    """Run a credential helper: the registry on its stdin, JSON on its stdout.

    The protocol is docker-credential-helpers'.  Raises UserError.
    """
    program = run.find_program(f"docker-credential-{name}") if _HELPER.match(name) else None
    if program is None:
        raise _helper_error(name, reference, "is not installed here")
    server = DOCKER_KEY if reference.registry == DEFAULT_REGISTRY else reference.registry
    code, stdout = _converse([program, "get"], server, user)
    if code:
        if NOT_FOUND in stdout.decode(errors="replace"):
            return None
        raise _helper_error(name, reference, f"failed with exit code {code}")
    try:
        answer = json.loads(stdout)
        secret, username = str(answer["Secret"]), str(answer["Username"])
    except (ValueError, TypeError, KeyError):
        raise _helper_error(name, reference, "does not answer as it should") from None
    return Login("", "", secret) if username == TOKEN_USER else Login(username, secret)


def _converse(argv: Sequence[str], question: str, user: User) -> Tuple[int, bytes]:
    """Run a helper; its exit code and its stdout.  Its stderr could be somebody else's job's."""
    environment = run.base_environment(HOME=user.home, USER=user.name, LOGNAME=user.name)
    # Files in memory: a pipe could fill, or have nobody at its other end.
    with _memory(question.encode()) as stdin, _memory() as stdout, _memory() as stderr:
        child = run.spawn(argv, stdin=stdin, stdout=stdout, stderr=stderr, env=environment)
        code = child.wait()
        stdout.seek(0)
        return code, stdout.read(MAX_FILE)


def _memory(content: bytes = b"") -> IO[bytes]:
    file = open(os.memfd_create("credentials"), "w+b", buffering=0)  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


def _document(reference: Reference, login: Login) -> bytes:
    """A containers-auth.json with the one entry."""
    name = login.name or TOKEN_USER  # an empty name is no entry to skopeo
    entry = {"auth": base64.b64encode(f"{name}:{login.password}".encode()).decode()}
    if login.token:
        entry["identitytoken"] = login.token
    return json.dumps({"auths": {reference.registry: entry}}).encode()


def _helper_error(name: str, reference: Reference, reason: str) -> UserError:
    return UserError(
        f"cannot get the password for {reference.registry}:"
        f" the credential helper docker-credential-{name[:80]} {reason}",
        "on a node, a password in ~/.docker/config.json works without a helper",
    )


def _site_error(path: str, reason: str, hint: str = "see the setting auth_file") -> SiteError:
    return SiteError(f"cannot use the passwords in {path}: {reason}", hint)
