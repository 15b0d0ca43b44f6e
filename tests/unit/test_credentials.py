"""Passwords for registries: where they are looked for, whose rights that takes, what is told."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence

import pytest

from hpcwrap import paths, run
from hpcwrap.config import Settings
from hpcwrap.errors import SiteError, UserError
from hpcwrap.image.credentials import _named_files, site_auth, user_auth
from hpcwrap.image.reference import parse_reference
from hpcwrap.job import User

SECRET = "geheim:42"
REFERENCE = parse_reference("registry.example:5000/team/app:1")
HUB = parse_reference("debian")
# Root reads for another user; everybody else, for themselves.
UID = 65534 if os.geteuid() == 0 else os.geteuid()
GID = 65534 if os.geteuid() == 0 else os.getegid()


def encode(name: str = "ann", secret: str = SECRET) -> Dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{secret}".encode()).decode()}


def entry_of(auth: bytes) -> Any:
    """Name and password of a document that has one entry."""
    ((_, entry),) = json.loads(auth)["auths"].items()
    name, _, secret = base64.b64decode(entry["auth"]).decode().partition(":")
    return name, secret


class Home:
    """A user's home directory, which is nobody else's."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.user = User("ann", UID, GID, (GID,), directory)

    def write(self, name: str, document: Any) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        for each in (path, path.parent):
            os.chown(each, UID, GID)
            each.chmod(0o600 if each == path else 0o700)
        return path

    def docker(self, **document: Any) -> None:
        self.write(".docker/config.json", document)


@pytest.fixture(name="home")
def make_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    directory = tempfile.mkdtemp(prefix="hpcwrap-test-")
    os.chown(directory, UID, GID)
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    yield Home(directory)
    shutil.rmtree(directory)


@pytest.fixture(name="helpers")
def make_helpers(home: Home, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the fixed PATH for credential helpers."""
    directory = home.directory / "bin"
    directory.mkdir()
    monkeypatch.setattr(run, "PATH", f"{directory}:{run.PATH}")
    return directory


def helper(directory: Path, name: str, script: str) -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ("registry.example:5000/team/app:1", "registry.example:5000"),
        ("registry.example:5000/team/app:1", "registry.example:5000/team"),
        ("registry.example:5000/team/app:1", "registry.example:5000/team/app"),
        ("registry.example:5000/team/app:1", "https://registry.example:5000"),
        ("registry.example:5000/team/app:1", "https://registry.example:5000/v1/"),
        ("registry.example:5000/team/app:1", "http://registry.example:5000/v2/"),
        ("debian", "https://index.docker.io/v1/"),
        ("debian", "docker.io"),
        ("debian", "docker.io/library/debian"),
        ("me/private:2", "index.docker.io"),
        ("registry.example/a", "registry.example"),
    ],
)
def test_the_names_that_an_entry_may_have(home: Home, reference: str, key: str) -> None:
    home.docker(auths={key: encode(), "other.example": encode("bob", "x")})
    parsed = parse_reference(reference)
    auth = user_auth(home.user, parsed)
    assert entry_of(auth) == ("ann", SECRET)
    assert list(json.loads(auth)["auths"]) == [parsed.registry]


@pytest.mark.parametrize(
    "key",
    [
        "registry.example",
        "example:5000",
        "registry.example:5000/te",
        "registry.example:5000/team/b",
    ],
)
def test_other_registries_passwords_are_not_shown(home: Home, key: str) -> None:
    home.docker(auths={key: encode()})
    assert user_auth(home.user, REFERENCE) == b""


def test_the_longest_name_counts(home: Home) -> None:
    keys: Sequence[str] = ("", "/team", "/team/app")
    home.docker(auths={f"registry.example:5000{key}": encode(f"user{len(key)}") for key in keys})
    assert entry_of(user_auth(home.user, REFERENCE))[0] == "user9"


def test_the_order_of_the_files(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.auth_files(7, "/h") == (
        "/run/user/7/containers/auth.json",
        "/run/containers/7/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    )
    home.docker(auths={REFERENCE.registry: encode("docker")})
    assert entry_of(user_auth(home.user, REFERENCE))[0] == "docker"
    podman = home.write(".config/containers/auth.json", {"auths": {"other": encode()}})
    assert entry_of(user_auth(home.user, REFERENCE))[0] == "docker"
    podman.write_text(json.dumps({"auths": {REFERENCE.registry: encode("podman")}}))
    assert entry_of(user_auth(home.user, REFERENCE))[0] == "podman"


def test_no_files_no_password(home: Home) -> None:
    assert user_auth(home.user, REFERENCE) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes a user")
def test_what_the_user_may_not_read_is_not_there(home: Home) -> None:
    home.docker(auths={REFERENCE.registry: encode()})
    path = home.directory / ".docker/config.json"
    os.chown(path, 0, 0)
    assert user_auth(home.user, REFERENCE) == b""
    os.unlink(path)
    os.symlink("/root/secret.json", path)
    assert user_auth(home.user, REFERENCE) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has root's")
def test_roots_own_passwords_are_nobodys(home: Home) -> None:
    home.docker(auths={REFERENCE.registry: encode()})
    assert user_auth(home.user._replace(uid=0, gid=0), REFERENCE) == b""


def test_an_identity_token(home: Home) -> None:
    home.docker(auths={REFERENCE.registry: {"auth": "", "identitytoken": SECRET}})
    (entry,) = json.loads(user_auth(home.user, REFERENCE))["auths"].values()
    assert entry["identitytoken"] == SECRET
    assert base64.b64decode(entry["auth"]) == b"<token>:"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ('"geheim:42"', "it is no JSON object"),
        ('{"auths": ["geheim:42"]}', "its auths is no JSON object"),
        ('{"auths": {"registry.example:5000": {"auth": "geheim:42"}}}', "is not in base64"),
    ],
)
def test_broken_files_are_named_without_what_is_in_them(
    home: Home, content: str, reason: str
) -> None:
    path = home.write(".docker/config.json", content)
    with pytest.raises(UserError, match=reason) as caught:
        user_auth(home.user, REFERENCE)
    assert f"cannot read {path}: " in caught.value.message
    assert "geheim" not in caught.value.sentence()


PRINTS = 'read host; printf \'{"Username": "%s", "Secret": "%s"}\' "$(id -u)" "$host"'


def test_a_helper_is_run_by_the_user_and_gets_the_registry(home: Home, helpers: Path) -> None:
    helper(helpers, "test", PRINTS)
    home.docker(credHelpers={REFERENCE.registry: "test", "docker.io": "test"})
    assert entry_of(user_auth(home.user, REFERENCE)) == (str(UID), REFERENCE.registry)
    assert entry_of(user_auth(home.user, HUB)) == (str(UID), "https://index.docker.io/v1/")


def test_a_helper_comes_before_a_password_and_the_common_one_after(
    home: Home, helpers: Path
) -> None:
    helper(helpers, "test", PRINTS)
    home.docker(credHelpers={REFERENCE.registry: "test"}, auths={REFERENCE.registry: encode()})
    assert entry_of(user_auth(home.user, REFERENCE))[0] == str(UID)
    home.docker(credsStore="test", auths={REFERENCE.registry: encode()})
    assert entry_of(user_auth(home.user, REFERENCE))[0] == "ann"
    home.docker(credsStore="test", auths={REFERENCE.registry: {}})
    assert entry_of(user_auth(home.user, REFERENCE))[0] == str(UID)
    home.docker(credsStore="not-on-this-node", auths={REFERENCE.registry: {}})
    assert user_auth(home.user, REFERENCE) == b""


def test_a_helpers_environment_is_the_users(home: Home, helpers: Path) -> None:
    helper(helpers, "test", 'printf \'{"Username": "%s", "Secret": "%s"}\' "$HOME" "$PWD"')
    home.docker(credHelpers={REFERENCE.registry: "test"})
    assert entry_of(user_auth(home.user, REFERENCE)) == (str(home.directory), "/")


def test_a_helper_with_an_identity_token(home: Home, helpers: Path) -> None:
    helper(helpers, "test", f'echo \'{{"Username": "<token>", "Secret": "{SECRET}"}}\'')
    home.docker(credHelpers={REFERENCE.registry: "test"})
    (entry,) = json.loads(user_auth(home.user, REFERENCE))["auths"].values()
    assert entry["identitytoken"] == SECRET


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo geheim >&2; echo geheim; exit 3", "failed with exit code 3"),
        ("echo geheim", "does not answer as it should"),
        ("echo '{}'", "does not answer as it should"),
        ("echo '[\"geheim\"]'", "does not answer as it should"),
    ],
)
def test_helpers_that_fail(
    home: Home, helpers: Path, script: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    helper(helpers, "test", script)
    home.docker(credHelpers={REFERENCE.registry: "test"})
    with pytest.raises(UserError) as caught:
        user_auth(home.user, REFERENCE)
    assert caught.value.message == (
        "cannot get the password for registry.example:5000:"
        f" the credential helper docker-credential-test {reason}"
    )
    assert capfd.readouterr() == ("", "")


def test_a_helper_that_has_nothing(home: Home, helpers: Path) -> None:
    helper(helpers, "test", "echo credentials not found in native keychain; exit 1")
    home.docker(credHelpers={REFERENCE.registry: "test"})
    assert user_auth(home.user, REFERENCE) == b""


@pytest.mark.parametrize("name", ["missing", "../bin/docker-credential-test", "", "a b", "x/y"])
def test_helpers_come_from_the_nodes_own_directories(home: Home, helpers: Path, name: str) -> None:
    helper(helpers, "test", PRINTS)
    home.docker(credHelpers={REFERENCE.registry: name})
    with pytest.raises(UserError, match="is not installed here"):
        user_auth(home.user, REFERENCE)


def test_a_helper_that_hangs_is_ended_with_its_children(home: Home, helpers: Path) -> None:
    helper(helpers, "test", "echo $$ >$HOME/pid; sleep 600 & wait")
    home.docker(credHelpers={REFERENCE.registry: "test"})
    with pytest.raises(SiteError) as caught:
        user_auth(home.user, REFERENCE, seconds=0.5)
    assert caught.value.sentence() == (
        "cannot get the password of ann for registry.example:5000: it took longer than 0.5 s"
        " (does the home directory hang?)"
    )
    process = (home.directory / "pid").read_text().strip()
    for _ in range(100):
        if not alive(process):
            return
        time.sleep(0.02)
    pytest.fail("the helper lives on")


def alive(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_file_that_never_ends_stops_nobody(home: Home) -> None:
    (home.directory / ".docker").mkdir()
    os.mkfifo(home.directory / ".docker/config.json")
    for path in (home.directory / ".docker", home.directory / ".docker/config.json"):
        os.chown(path, UID, GID)
    with pytest.raises(SiteError, match="it took longer than"):
        user_auth(home.user, REFERENCE, seconds=0.3)


def test_only_the_users_own_processes_name_files(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home.write("auth.json", {"auths": {REFERENCE.registry: encode()}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    monkeypatch.setenv("DOCKER_CONFIG", "/x")
    assert [*_named_files()] == [str(path), "/x/config.json"]
    # Root's environment is a scheduler's, or an administrator's.
    assert bool(user_auth(home.user, REFERENCE)) is (os.geteuid() != 0)


def test_the_sites_passwords(tmp_path: Path) -> None:
    assert site_auth(Settings()) == b""
    path = tmp_path / "auth.json"
    content = json.dumps({"auths": {"a": encode(), "b": encode()}})
    path.write_text(content)
    path.chmod(0o640)
    assert site_auth(Settings(auth_file=str(path))) == content.encode()


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (None, 0o600, "No such file or directory (see the setting auth_file)"),
        ("{}", 0o644, "everybody may read it (chmod 600 {path})"),
        ("{", 0o600, "it is no JSON (see the setting auth_file)"),
    ],
)
def test_files_of_the_site_that_will_not_do(
    tmp_path: Path, content: Any, mode: int, sentence: str
) -> None:
    path = tmp_path / "auth.json"
    if content:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(SiteError) as caught:
        site_auth(Settings(auth_file=str(path)))
    assert caught.value.sentence() == (
        f"cannot use the passwords in {path}: {sentence.format(path=path)}"
    )
