"""Damage of every kind is found, and set aside when that is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Callable, List

import pytest

from hpcwrap.errors import SiteError
from hpcwrap.image.digest import digest_of
from hpcwrap.image.publish import publish_image, publish_link
from hpcwrap.image.store import Store
from hpcwrap.image.verify import Finding, sources_of, verify, verify_links
from hpcwrap.image.workspace import ensure_store

SIZE = 200
OTHER = digest_of(b"other")
CONTENT = b"hsqs" + bytes(36) + SIZE.to_bytes(8, "little") + bytes(SIZE - 48)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    ensure_store(made)
    return made


def add(store: Store, name: str = "h:1/a:1", uids: List[int] = []) -> str:  # noqa: B006
    digest = digest_of(name.encode())
    made = Path(store.tmp_directory) / "made"
    made.write_bytes(CONTENT)
    document = {"reference": name, "config": None, "pulled": 0, "uids": uids}
    publish_image(store, digest, str(made), document)
    publish_link(store, name, digest)
    return digest


def change(path: str, at: int, content: bytes) -> None:
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


def change_fields(path: str, **fields: object) -> None:
    document = json.loads(Path(path).read_text())
    os.chmod(path, 0o600)
    Path(path).write_text(json.dumps({**document, **fields}))


def test_what_is_well_is_well(store: Store) -> None:
    digest = add(store)
    assert list(verify(store, [digest])) == [Finding("image", f"h:1/a:1 ({digest[7:19]})", "")]
    assert list(verify_links(store)) == [Finding("reference", "h:1%2Fa:1", "")]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s, d: change(s.squashfs_path(d), 150, b"X"), "is not what was written"),
        (lambda s, d: change(s.squashfs_path(d), 0, b"X"), "squashfs is none"),
        (lambda s, d: os.truncate(s.squashfs_path(d), 120), "cut off after 120 of 200 bytes"),
        (lambda s, d: os.truncate(s.squashfs_path(d), 0), "squashfs is none"),
        (lambda s, d: os.unlink(s.squashfs_path(d)), "is not there"),
        (lambda s, d: change(s.document_path(d), 0, b"X"), "cannot be read"),
        (lambda s, d: change_fields(s.document_path(d), digest=OTHER), "of another image"),
    ],
)
def test_damage_is_found_and_set_aside(
    store: Store, damage: Callable[[Store, str], None], words: str
) -> None:
    digest = add(store)
    damage(store, digest)
    (found,) = verify(store, [digest])
    assert words in found.problem
    assert found.repair == ""

    def fails(text: str) -> None:
        assert text == f"h:1/a@{digest}"
        raise SiteError("cannot pull: no network")

    (found,) = verify(store, [digest], fails)
    assert found.repair == "set aside, but not pulled again: cannot pull: no network"
    assert store.find("h:1/a:1") is None
    assert os.listdir(store.images_directory) == []
    assert len(os.listdir(store.aside_directory)) >= 1


def test_repaired_images_are_found_under_their_old_names(store: Store) -> None:
    digest = add(store)
    change(store.squashfs_path(digest), 150, b"X")

    def again(text: str) -> None:
        made = Path(store.tmp_directory) / "made"
        made.write_bytes(CONTENT)
        publish_image(store, digest, str(made), {"reference": text, "config": None, "pulled": 0})
        publish_link(store, text, digest)

    (found,) = verify(store, [digest], again)
    assert found.repair == "pulled again from h:1/a"
    assert store.find("h:1/a:1") is not None
    assert [link.reference for link in store.links()[0]] == ["h:1/a:1"]
    assert [found.problem for found in verify(store, [digest])] == [""]


def test_a_private_image_is_not_pulled_by_root(store: Store) -> None:
    for damaged in ("squashfs", "document"):
        digest = add(store, f"h:1/{damaged}:1", uids=[1001])
        path = store.squashfs_path(digest) if damaged == "squashfs" else store.document_path(digest)
        mode = os.stat(path).st_mode
        change(path, 0, b"X")
        os.chmod(path, mode)
        (found,) = verify(store, [digest], pytest.fail)
        assert "it is a user's" in found.repair


def test_an_image_without_a_checksum_gets_one(store: Store) -> None:
    digest = add(store)
    change_fields(store.document_path(digest), checksum="")
    assert [found.problem for found in verify(store, [digest])] == [""]
    change(store.squashfs_path(digest), 150, b"X")
    (found,) = verify(store, [digest])
    assert "is not what was written there" in found.problem


def test_progress_ends_with_the_whole(store: Store) -> None:
    told: List[object] = []
    list(verify(store, [add(store)], None, lambda *what: told.append(what)))
    assert told == [("h:1/a:1", SIZE, SIZE)]


def test_references_that_cannot_be_read(store: Store) -> None:
    add(store)
    Path(store.refs_directory, "rubbish.1").write_text("{")
    os.link(store.ref_path("h:1/a:1"), Path(store.refs_directory, "other"))
    bad = [found.name for found in verify_links(store) if found.problem]
    assert bad == ["other", "rubbish.1"]
    assert all(
        "set aside" in found.repair for found in verify_links(store, repair=True) if found.problem
    )
    assert os.listdir(store.refs_directory) == ["h:1%2Fa:1"]


def test_sources_to_pull_from(store: Store) -> None:
    digest = add(store)
    publish_link(store, "h:1/b:2", digest)
    publish_link(store, "h:1/b:2", digest_of(b"newer"))
    publish_link(store, "/home/u/x.sif", digest)
    assert sorted(sources_of(store, digest)) == [f"h:1/a@{digest}", f"h:1/b@{digest}"]
