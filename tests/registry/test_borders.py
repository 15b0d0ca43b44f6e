"""What one user names, serves or says opens nothing to another, and moves nothing of another's."""

from __future__ import annotations

import os

import pytest
from registries import Layout, Pushed, Registry
from tars import Member, make_layer

from hpcwrap.config import Settings
from hpcwrap.environment import Environment
from hpcwrap.errors import HpcwrapError
from hpcwrap.image.pull import PullOptions, pull
from hpcwrap.image.refresh import refresh
from hpcwrap.image.store import Store
from hpcwrap.job import Job, User
from hpcwrap.submit import Choice
from hpcwrap.supply import Supplied, supply

pytestmark = [
    pytest.mark.registry,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root pulls for others"),
]

ANN, BOB = (User(f"user{uid}", uid, uid, (uid,), "/nonexistent") for uid in (12001, 12002))


class Site:
    """A store in which users' own images are allowed, and a registry on the node."""

    def __init__(self, root: str, registry: Registry, layout: Layout) -> None:
        self.settings = Settings(store=f"{root}/store", user_images=True, registry_retries=0)
        self.store = Store(self.settings.store)
        self.registry = registry
        self.layout = layout
        self.reference = f"{registry.host}/borders:1"

    def push(self, text: str) -> Pushed:
        layer = make_layer([Member("text", content=text.encode())])
        return self.layout.push_layers(self.registry, "borders:1", [layer], {})

    def start(self, user: User, text: str) -> Supplied:
        own = Environment(text, text, "", (), (), None, (), (), "--container")
        job = Job("7", "slurm", user, "/", "n1")
        return supply(Choice(self.settings, own, "--container", "", True), job, "/none")


@pytest.fixture(name="site")
def make_site(root: str, registry: Registry, layout: Layout) -> Site:
    return Site(root, registry, layout)


def test_localhost_is_another_registry_for_another_user(site: Site) -> None:
    bobs = site.push("bob's").digest
    assert site.start(BOB, site.reference).image.digest == bobs
    anns = site.push("ann's").digest
    assert site.start(ANN, site.reference).image.digest == anns
    assert site.start(BOB, site.reference).image.digest == bobs


def test_what_users_name_moves_no_name_of_the_sites(site: Site) -> None:
    sites = site.push("the site's").digest
    pull(site.reference, site.store)
    site.push("another's")
    options = PullOptions(user=BOB, named_by_user=True)
    moved = refresh(site.store, site.reference, options).image.digest
    assert moved != sites
    link = site.store.find_link(site.reference)
    assert link is not None
    assert link.history == (sites,)
    assert site.start(ANN, site.reference).image.digest == sites, "the site's word counts for all"
    assert site.start(BOB, site.reference).image.digest == moved


def test_a_digest_is_no_word_for_an_image_of_another_repository(site: Site) -> None:
    digest = site.push("the site's").digest
    pull(site.reference, site.store)
    with pytest.raises(HpcwrapError, match="does not have it"):
        site.start(BOB, f"{site.registry.host}/others@{digest}")
    assert site.start(BOB, f"{site.registry.host}/borders@{digest}").image.digest == digest
