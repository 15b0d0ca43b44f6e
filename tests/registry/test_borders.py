"""What one user names, serves or says opens nothing to another, and moves nothing of another's."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict

import pytest
from fault_proxy import Answer, FaultProxy, Handler
from registries import Layout, Pushed, Registry
from tars import Member, make_layer

from hpcwrap.config import Settings
from hpcwrap.environment import Environment
from hpcwrap.errors import HpcwrapError, UserError
from hpcwrap.image import plan
from hpcwrap.image.pull import pull
from hpcwrap.image.puller import PullOptions
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


def describe(directory: Path, digest: str) -> Dict[str, object]:
    manifest = (directory / "blobs/sha256" / digest[7:]).read_bytes()
    kind = json.loads(manifest)["mediaType"]
    return {"mediaType": kind, "digest": digest, "size": len(manifest)}


def test_a_manifest_alone_opens_no_private_image(
    site: Site, root: str, registry: Registry, layout: Layout
) -> None:
    pushed = site.push("ann's")
    copy = Path(root, "copy")
    subprocess.run(["cp", "-r", layout.root, copy], check=True)
    index = {"schemaVersion": 2, "manifests": [describe(copy, pushed.digest)]}
    (copy / "index.json").write_text(json.dumps(index))
    image = site.start(ANN, f"oci:{copy}").image
    assert (image.digest, image.uids) == (pushed.digest, (ANN.uid,))
    # Bob knows the manifest, and serves it: his registry has none of the layers.
    layer = json.loads((copy / "blobs/sha256" / pushed.digest[7:]).read_text())["layers"][0]
    digits = layer["digest"][7:]
    stored = registry.root / "data/docker/registry/v2/blobs/sha256" / digits[:2] / digits
    hidden = stored.rename(f"{stored}-hidden")
    with pytest.raises(HpcwrapError):
        site.start(BOB, site.reference)
    found = site.store.find_digest(pushed.digest)
    assert found is not None
    assert found.uids == (ANN.uid,)
    hidden.rename(stored)
    assert site.start(BOB, site.reference).image.uids == (), "who has all of it may give it to all"


def test_nobody_waits_for_the_download_of_what_a_user_named(site: Site) -> None:
    digest = site.push("everybody's next image").digest
    released = threading.Event()

    def behave(handler: Handler, answer: Answer) -> Answer:
        released.wait(60)
        return answer

    proxy = FaultProxy(site.registry.port)
    proxy.fault("blobs/", behave)
    with ThreadPoolExecutor() as other:
        bobs = other.submit(site.start, BOB, f"{proxy.host}/borders:1")
        while not proxy.count("blobs/"):
            assert not bobs.done(), bobs.result()
            time.sleep(0.01)
        try:
            image = pull(site.reference, site.store, PullOptions(timeout=20)).image
        finally:
            released.set()
    proxy.stop()
    assert bobs.result().image.digest == image.digest == digest


# ---- files of users ----


def write_archive(path: Path, files: Dict[str, bytes], links: Dict[str, Path]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, str(target)
            archive.addfile(member)


LAYOUT = {"oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode()}


def test_links_in_an_archive_lead_to_no_download_of_others(
    site: Site, root: str, layout: Layout
) -> None:
    """skopeo unpacks OCI archives as the image user, who has all pulls' private layers."""
    site.push("another's, on its way")
    others = Path(root, "others")
    subprocess.run(["cp", "-r", layout.root, others], check=True)
    path = Path(root, "links.tar")
    links = {name: others / name for name in ("index.json", "blobs")}
    write_archive(path, LAYOUT, links)
    with pytest.raises(UserError, match="cannot use the image"):
        site.start(BOB, f"oci-archive:{path}:{site.reference.rpartition(':')[2]}")
    with pytest.raises(UserError, match="cannot use the image"):
        site.start(BOB, str(path))
    assert site.store.images() == ([], [])


def test_a_layout_whose_blobs_are_links_is_read_with_its_users_rights(
    site: Site, root: str, layout: Layout
) -> None:
    site.push("a layout")
    linked = Path(root, "linked")
    linked.mkdir()
    copy = Path(root, "copy")
    subprocess.run(["cp", "-r", layout.root, copy], check=True)
    for name in os.listdir(copy):
        (linked / name).symlink_to(copy / name)
    index = json.loads((copy / "index.json").read_text())
    index["manifests"] = index["manifests"][-1:]
    (copy / "index.json").write_text(json.dumps(index))
    assert site.start(BOB, f"oci:{linked}").image.uids == (BOB.uid,)
    (copy / "blobs").chmod(0o700)
    with pytest.raises(UserError):
        site.start(ANN, f"oci:{linked}")


def test_zeros_of_a_users_file_do_not_fill_the_store(
    site: Site, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "FREE", 64 << 20)
    tree = Path(root, "tree")
    (tree / "etc").mkdir(parents=True)
    with (tree / "etc/zeros").open("wb") as zeros:
        zeros.truncate(512 << 20)
    squashfs, archive = Path(root, "zeros.sqsh"), Path(root, "zeros.tar")
    subprocess.run(["mksquashfs", tree, squashfs, "-quiet", "-no-progress"], check=True)
    write_archive(archive, {**LAYOUT, "blobs/sha256/" + "0" * 64: bytes(256 << 20)}, {})
    packed = Path(root, "zeros.tar.gz")
    packed.write_bytes(gzip.compress(archive.read_bytes(), 9))
    for path in (squashfs, packed):
        with pytest.raises(UserError, match="when unpacked"):
            site.start(BOB, str(path))


@pytest.mark.parametrize("which", ["layers", "config"])
def test_an_archive_is_what_its_digests_say(
    site: Site, root: str, layout: Layout, which: str
) -> None:
    digest = site.push("the real one").digest
    copy = Path(root, "copy")
    subprocess.run(["cp", "-r", layout.root, copy], check=True)
    manifest = json.loads((copy / "blobs/sha256" / digest[7:]).read_text())
    index = json.loads((copy / "index.json").read_text())
    index["manifests"] = [one for one in index["manifests"] if one["digest"] == digest][-1:]
    (copy / "index.json").write_text(json.dumps(index))
    blob = manifest["config"] if which == "config" else manifest["layers"][0]
    path = copy / "blobs/sha256" / blob["digest"][7:]
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError):
        site.start(BOB, f"oci:{copy}")
    assert site.store.images() == ([], [])
