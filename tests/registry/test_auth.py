"""Registries that want passwords: basic and bearer authentication, by real registries."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from fetching import auth_for, encoded, fetch, names_below
from registries import Cli, Layout, Pushed, Registry
from tars import Member, make_layer
from token_server import Account, TokenServer

from hpcwrap import run
from hpcwrap.errors import DeniedError
from hpcwrap.image.access import Access
from hpcwrap.image.credentials import user_auth
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.store import Store
from hpcwrap.image.worker import Progress, work_as
from hpcwrap.job import User

pytestmark = pytest.mark.registry

NAME, PASSWORD = "ann", "s3cret:pass"
HASH = "$2b$04$Q6d916F8vJz5/dt1YAhuwu4dg9DAcv8CuE7IAGNEaIxhkQdZ6SpVi"
"""Of the password, by bcrypt (crypt(5)): the only kind that docker-registry takes."""
LAYERS = [make_layer([Member("a", content=b"a" * 5000)])]
LOG_IN = "is the name right? log in with podman login or docker login"
WITHOUT = "the registry does not give it to us without a password"
WRONG = "the registry does not give it for the password that it was shown"
STILL = "is the name right? is the login still valid?"


@pytest.fixture(scope="module", name="pushed")
def make_pushed(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> List[Pushed]:
    """The same image, twice."""
    layout = Layout(tmp_path_factory.mktemp("auth") / "layout")
    names = ("public/tool:1", "private/tool:1")
    return [layout.push_layers(registry, name, LAYERS, {}) for name in names]


@pytest.fixture(scope="module", name="basic")
def make_basic(
    registry: Registry, pushed: List[Pushed], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    """The registry's images behind one password (htpasswd)."""
    root = tmp_path_factory.mktemp("basic")
    (root / "users").write_text(f"{NAME}:{HASH}\n")
    more = f"auth: {{htpasswd: {{realm: here, path: {root}/users}}}}"
    started = Registry(root, more, data=registry.root / "data")
    yield started
    started.stop()


@pytest.fixture(scope="module", name="tokens")
def make_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    accounts = {
        "": Account("", ["public/"]),
        NAME: Account(PASSWORD, ["public/", "private/"]),
        "bob": Account("x", ["public/"]),
    }
    server = TokenServer(tmp_path_factory.mktemp("tokens"), accounts)
    yield server
    server.stop()


@pytest.fixture(scope="module", name="bearer")
def make_bearer(
    registry: Registry,
    pushed: List[Pushed],
    tokens: TokenServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Registry]:
    """The registry's images behind tokens."""
    root = tmp_path_factory.mktemp("bearer")
    started = Registry(root, tokens.settings, data=registry.root / "data")
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def in_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers work in a directory of their own."""
    monkeypatch.chdir(tmp_path)


def test_basic_authentication(basic: Registry) -> None:
    fetch(f"{basic.host}/private/tool:1", Access(auth=auth_for(basic.host, NAME, PASSWORD)))


def test_the_most_special_entry_counts(basic: Registry) -> None:
    entries = {
        basic.host: encoded(NAME, "wrong"),
        f"{basic.host}/private": encoded(NAME, PASSWORD),
    }
    fetch(f"{basic.host}/private/tool:1", Access(auth=json.dumps({"auths": entries}).encode()))


@pytest.mark.parametrize(
    ("auth", "sentence"),
    [
        ({}, f"{WITHOUT} ({LOG_IN})"),
        ({"wrong": "host"}, f"{WITHOUT} ({LOG_IN})"),
        ({"name": NAME, "password": "wrong"}, f"{WRONG} ({STILL})"),
        ({"name": "nobody", "password": PASSWORD}, f"{WRONG} ({STILL})"),
    ],
    ids=["none", "other-registry", "wrong", "unknown"],
)
@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_refusal_says_what_to_do(
    kind: str, auth: Dict[str, str], sentence: str, request: pytest.FixtureRequest
) -> None:
    registry = request.getfixturevalue(kind)
    access = Access()
    if auth:
        host = "other.example" if "wrong" in auth else registry.host
        access = Access(auth=auth_for(host, auth.get("name", NAME), auth.get("password", PASSWORD)))
    text = f"{registry.host}/private/tool:1"
    with pytest.raises(DeniedError) as caught:
        fetch(text, access)
    assert caught.value.sentence() == f"cannot pull the image {text}: {sentence}"


def test_bearer_authentication(bearer: Registry, tokens: TokenServer) -> None:
    tokens.asked.clear()
    fetch(f"{bearer.host}/public/tool:1")
    assert set(tokens.asked) == {""}
    auth = auth_for(bearer.host, NAME, PASSWORD)
    fetch(f"{bearer.host}/private/tool:1", Access(auth=auth), "private")
    assert NAME in tokens.asked


def test_an_account_gets_its_own_repositories(bearer: Registry) -> None:
    access = Access(auth=auth_for(bearer.host, "bob", "x"))
    fetch(f"{bearer.host}/public/tool:1", access)
    with pytest.raises(DeniedError, match=WRONG):
        fetch(f"{bearer.host}/private/tool:1", access)


def test_an_identity_token(bearer: Registry, tokens: TokenServer) -> None:
    entry = {**encoded("<token>", ""), "identitytoken": f"identity-of-{NAME}"}
    access = Access(auth=json.dumps({"auths": {bearer.host: entry}}).encode())
    fetch(f"{bearer.host}/private/tool:1", access)
    with pytest.raises(DeniedError, match=WITHOUT):
        fetch(f"{bearer.host}/private/tool:1")


class Home:
    """A home directory with a password in it, which belongs to a user."""

    def __init__(self, root: str, host: str) -> None:
        uid = 65534 if os.geteuid() == 0 else os.geteuid()
        self.user = User(NAME, uid, uid, (uid,), root)
        directory = Path(root, ".docker")
        directory.mkdir(mode=0o700)
        path = directory / "config.json"
        path.write_bytes(auth_for(f"https://{host}/v1/", NAME, PASSWORD))
        path.chmod(0o600)
        for each in (directory, path):
            os.chown(each, uid, uid)


def test_what_docker_login_leaves_in_a_home_is_enough(bearer: Registry, root: str) -> None:
    text = f"{bearer.host}/private/tool:1"
    auth = user_auth(Home(root, bearer.host).user, parse_reference(text))
    fetch(text, Access(auth=auth))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has an image user")
def test_the_image_user_needs_no_file_of_its_own(basic: Registry, root: str) -> None:
    os.chown(root, 65534, 65534)
    access = Access(auth=auth_for(basic.host, NAME, PASSWORD))
    text = f"{basic.host}/private/tool:1"
    seen: List[Progress] = []
    told = work_as(
        run.Identity(65534, 65534),
        root,
        lambda _: {"digest": fetch(text, access).resolved.digest, "uid": os.geteuid()},
        seen.append,
        30.0,
    )
    assert told["uid"] == 65534
    assert told["digest"].startswith("sha256:")


@pytest.mark.parametrize("password", [PASSWORD, "wr0ng:pass"])
def test_passwords_are_nowhere_to_be_seen(
    basic: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    spoken: List[str] = []
    spawn = run.spawn

    def listen(argv: Any, **more: Any) -> Any:
        spoken.extend([*argv, *more.get("env", {}).values()])
        return spawn(argv, **more)

    monkeypatch.setattr(run, "spawn", listen)
    text = f"{basic.host}/private/tool:1"
    said = ""
    download = None
    try:
        download = fetch(text, Access(auth=auth_for(basic.host, NAME, password)))
        said = download._skopeo._run.said()
    except DeniedError as error:
        said = error.sentence()
    assert bool(download) is (password == PASSWORD)
    assert "--authfile" in spoken
    secrets = [password, base64.b64encode(f"{NAME}:{password}".encode()).decode()]
    files = [(tmp_path / name).read_bytes() for name in names_below(tmp_path)]
    for secret in secrets:
        assert secret not in said + repr(spoken)
        assert not any(secret.encode() in content for content in files)


def test_passwords_of_the_host_are_not_used(
    basic: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    for name in (".docker/config.json", ".config/containers/auth.json", "containers/auth.json"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(auth_for(basic.host, NAME, PASSWORD))
    for variable in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(root))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(root / "containers/auth.json"))
    monkeypatch.setenv("DOCKER_CONFIG", str(root / ".docker"))
    with pytest.raises(DeniedError, match=WITHOUT):
        fetch(f"{basic.host}/private/tool:1")


def test_the_sites_passwords_open_images_for_everyone(
    basic: Registry, cli: Cli, tmp_path: Path
) -> None:
    text = f"{basic.host}/private/tool:1"
    refused = cli("pull", "--quiet", text)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert WITHOUT in refused.stderr
    path = tmp_path / "auth.json"
    path.write_bytes(auth_for(basic.host, NAME, PASSWORD))
    path.chmod(0o600)
    with open(cli.settings, "a") as settings:
        settings.write(f"auth_file: {path}\n")
    pulled = cli("pull", "--json", text)
    assert pulled.returncode == 0, pulled.stderr
    image = Store(cli.store).find(text)
    assert image is not None
    assert image.uids == ()
    for name in names_below(Path(cli.store)):
        assert PASSWORD.encode() not in Path(cli.store, name).read_bytes()


def test_the_sites_credential_helpers_are_run_by_the_image_user(
    basic: Registry, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(root, "docker-credential-site")
    answer = json.dumps({"Username": NAME, "Secret": PASSWORD})
    path.write_text(f"#!/bin/sh\nid -u >uid\necho '{answer}'\n")
    path.chmod(0o755)
    monkeypatch.setattr(run, "PATH", f"{root}:{run.PATH}")
    access = Access(auth=json.dumps({"credHelpers": {basic.host: "site"}}).encode())
    work = Path(root, "work")
    work.mkdir()
    uid = 65534 if os.geteuid() == 0 else os.geteuid()
    os.chown(work, uid, uid)
    work_as(
        run.Identity(uid, uid),
        str(work),
        lambda _: {"digest": fetch(f"{basic.host}/private/tool:1", access).resolved.digest},
        lambda _: None,
        60.0,
    )
    assert (work / "uid").read_text() == f"{uid}\n"
