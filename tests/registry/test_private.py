"""Whose an image is: everyone's, or only those users' to whom its registry gives it."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any, Iterator, List, Optional

import pytest
from registries import Layout, Pushed, Registry
from tars import Member, make_layer
from token_server import Account, TokenServer

from hpcwrap.errors import DeniedError
from hpcwrap.image.access import Access
from hpcwrap.image.pull import Pulled, pull
from hpcwrap.image.puller import PullOptions
from hpcwrap.image.refresh import refresh
from hpcwrap.image.store import Image, Store, allowed
from hpcwrap.job import User

pytestmark = [
    pytest.mark.registry,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root pulls for others"),
]

ANN, BOB, EVE = 12001, 12002, 12003
PASSWORDS = {ANN: "ann:a", BOB: "bob:b", EVE: "eve:e"}
LAYERS = [make_layer([Member("a", content=os.urandom(3000))])]


@pytest.fixture(scope="module", name="tokens")
def make_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    accounts = {
        "": Account("", ["public/"]),
        "ann": Account("a", ["public/", "private/"]),
        "bob": Account("b", ["public/", "private/"]),
        "eve": Account("e", ["public/"]),
        "site": Account("s", ["public/", "private/"]),
    }
    server = TokenServer(tmp_path_factory.mktemp("tokens"), accounts)
    yield server
    server.stop()


@pytest.fixture(scope="module", name="pushed")
def make_pushed(
    registry: Registry, tokens: TokenServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[List[Pushed]]:
    """public/tool:1 and private/tool:1 of a registry that asks the token server."""
    layout = Layout(tmp_path_factory.mktemp("private") / "layout")
    made = [
        layout.push_layers(registry, name, LAYERS, {"Labels": {"name": name}})
        for name in ("public/tool:1", "private/tool:1")
    ]
    root = tmp_path_factory.mktemp("bearer")
    front = Registry(root, tokens.settings, data=registry.root / "data")
    yield [
        each._replace(reference=f"{front.host}/{each.reference.partition('/')[2]}") for each in made
    ]
    front.stop()


class Site:
    """A store, and users with passwords in their homes."""

    def __init__(self, root: str, pushed: List[Pushed]) -> None:
        self.root = Path(root)
        self.store = Store(root + "/store")
        self.public, self.private = (each.reference for each in pushed)
        self.host = self.public.partition("/")[0]

    def auth(self, password: str) -> str:
        entry = {"auth": base64.b64encode(password.encode()).decode()}
        return json.dumps({"auths": {self.host: entry}})

    def user(self, uid: int, *, known: bool = True) -> User:
        home = self.root / str(uid)
        (home / ".docker").mkdir(parents=True, exist_ok=True)
        if known:
            (home / ".docker" / "config.json").write_text(self.auth(PASSWORDS[uid]))
        for path in (home, *home.rglob("*")):
            os.chown(path, uid, uid)
        os.chmod(home, 0o700)
        return User(f"user{uid}", uid, uid, (uid,), str(home))

    def pull(self, reference: str, user: Optional[User] = None, **options: Any) -> Pulled:
        access = Access(cache_limit=1 << 30)
        made = PullOptions(access=access, user=user)._replace(**options)
        return pull(reference, self.store, made)

    def mode(self, image: Image) -> int:
        return stat.S_IMODE(os.stat(image.squashfs).st_mode)


@pytest.fixture(name="site")
def make_site(root: str, pushed: List[Pushed]) -> Site:
    return Site(root, pushed)


def test_what_everybody_gets_is_everyones_whoever_asks(site: Site) -> None:
    image = site.pull(site.public, site.user(ANN)).image
    assert image.uids == ()
    assert site.mode(image) == 0o444
    assert os.listdir(site.store.blobs_directory)


def test_what_only_a_user_gets_is_that_users(site: Site) -> None:
    image = site.pull(site.private, site.user(ANN)).image
    assert image.uids == (ANN,)
    assert allowed(image, ANN)
    assert not allowed(image, BOB)
    for path in (image.squashfs, site.store.document_path(image.digest)):
        assert (stat.S_IMODE(os.stat(path).st_mode), os.stat(path).st_uid) == (0o400, 0)
    assert stat.S_IMODE(os.stat(site.store.ref_path(site.private)).st_mode) == 0o400
    assert os.listdir(site.store.blobs_directory) == [], "no layer of it is left for others"


def test_another_user_shows_that_the_registry_gives_it(site: Site) -> None:
    site.pull(site.private, site.user(ANN))
    with pytest.raises(DeniedError, match="without a password"):
        site.pull(site.private, site.user(BOB, known=False))
    with pytest.raises(DeniedError):
        site.pull(site.private, site.user(EVE))
    again = site.pull(site.private, site.user(BOB))
    assert (again.new, again.image.uids) == (False, (ANN, BOB))
    assert site.pull(site.private, site.user(ANN)).image.uids == (ANN, BOB)


def test_nobody_gets_it_without_a_user(site: Site) -> None:
    site.pull(site.private, site.user(ANN))
    with pytest.raises(DeniedError):
        site.pull(site.private)
    with pytest.raises(DeniedError):
        site.pull(site.private, site.user(ANN), user_credentials=False)


def test_what_the_site_gets_is_everyones(site: Site) -> None:
    site.pull(site.private, site.user(ANN))
    passwords = site.root / "auth.json"
    passwords.touch(0o600)
    passwords.write_text(site.auth("site:s"))
    image = site.pull(site.private, auth_file=str(passwords)).image
    assert image.uids == ()
    assert site.mode(image) == 0o444
    assert stat.S_IMODE(os.stat(site.store.ref_path(site.private)).st_mode) == 0o444


def test_the_site_may_share_what_a_user_gets(site: Site) -> None:
    pattern = f"{site.host}/private/*"
    image = site.pull(site.private, site.user(ANN), shared_images=(pattern,)).image
    assert (image.uids, site.mode(image)) == ((), 0o444)


def test_a_private_image_is_refreshed_with_its_users_password(site: Site) -> None:
    site.pull(site.private, site.user(ANN))
    options = PullOptions(user=site.user(ANN))
    assert refresh(site.store, site.private, options).image.uids == (ANN,)
    with pytest.raises(DeniedError):
        refresh(site.store, site.private, PullOptions())
    link = site.store.find_link(site.private)
    assert link is not None
    assert "without a password" in link.failed


def test_no_password_is_left_anywhere(site: Site) -> None:
    site.pull(site.private, site.user(ANN))
    secret = base64.b64encode(PASSWORDS[ANN].encode())
    for path in Path(site.store.root).rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes()
