"""The store: found again, damaged, locked, cleaned and emptied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest

from hpcwrap.errors import SiteError, UserError
from hpcwrap.image import remove as removal
from hpcwrap.image.digest import digest_of
from hpcwrap.image.publish import grant, note_failure, publish_image, publish_link, share
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.remove import remove
from hpcwrap.image.store import ImageConfig, Store, allowed, file_name, parse_config, touch_used
from hpcwrap.image.worker import Report, work_as
from hpcwrap.image.workspace import (
    ensure_store,
)
from hpcwrap.run import Identity

NOBODY = Identity(65534, 65534) if os.geteuid() == 0 else None
CONFIG = {"Env": ["PATH=/bin", "A=b=c"], "WorkingDir": "/w", "Labels": {"a": "b"}, "Cmd": None}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    ensure_store(made)
    return made


def add(store: Store, *references: str, content: str = "squashfs", **fields: object) -> str:
    """Publish a made-up image under references."""
    digest = digest_of(content.encode())
    made = Path(store.tmp_directory) / "made"
    made.write_text(content)
    document = {"reference": references[0], "config": CONFIG, "pulled": 1.5, **fields}
    publish_image(store, digest, str(made), document)
    for reference in references:
        publish_link(store, parse_reference(reference), digest)
    return digest


def files(store: Store) -> List[str]:
    found = Path(store.root).rglob("*")
    return sorted(p.name for p in found if p.is_file() and "locks" not in p.parts)


def test_what_is_published_is_found(store: Store) -> None:
    digest = add(store, "h:1/a/b:1")
    image = store.find("docker://h:1/a/b:1")
    assert image is not None
    assert (image.digest, image.reference, image.size) == (digest, "h:1/a/b:1", 8)
    assert image.config == ImageConfig(("PATH=/bin", "A=b=c"), "/w", "", (), (), {"a": "b"})
    assert Path(image.squashfs).read_text() == "squashfs"
    assert Path(image.squashfs).stat().st_mode & 0o7777 == 0o444


def test_unknown_references_and_digests(store: Store) -> None:
    digest = add(store, "a:1")
    assert store.find("a:2") is None
    assert store.find(f"never/seen@{digest}") is None, "nobody has said that it is in there"
    assert Store("/no/such/store").find("a:1") is None
    assert Store("/no/such/store").images() == ([], [])


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 2}', '{"version": 1}', "\udcff"])
def test_damaged_documents_stop_nothing(store: Store, damage: str) -> None:
    add(store, "whole:1", content="whole")
    digest = add(store, "broken:1", content="broken")
    for path in (store.document_path(digest), store.ref_path(parse_reference("broken:1"))):
        os.chmod(path, 0o644)
        Path(path).write_text(damage, errors="surrogateescape")
    assert store.find("broken:1") is None
    images, problems = store.images()
    links, more = store.links()
    assert [image.reference for image in images] == ["whole:1"]
    assert [link.reference for link in links] == ["whole:1"]
    assert len(problems) == len(more) == 1


def test_a_squashfs_without_document_is_no_image(store: Store) -> None:
    digest = add(store, "a:1")
    os.unlink(store.document_path(digest))
    assert store.find("a:1") is None


@pytest.mark.parametrize(
    "config", [{"Env": "PATH=/bin"}, {"Env": [1]}, {"Env": ["A=\0"]}, {"User": 1}, {"Labels": []}]
)
def test_configurations_of_wrong_types_are_refused(config: object) -> None:
    if config == {"Labels": []}:
        assert parse_config(config) == ImageConfig()
        return
    with pytest.raises(ValueError, match="no"):
        parse_config(config)


def test_file_names_of_references() -> None:
    assert file_name("h:1/a/b:1") == "h:1%2Fa%2Fb:1"
    long = "a/" * 120 + "b:1"
    assert len(file_name(long)) < 100
    assert "/" not in file_name(long)
    assert file_name(long) != file_name(long + "2")


def test_only_plain_files_are_published(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    (tmp_path / "symlink").symlink_to(secret)
    os.link(secret, tmp_path / "second")
    os.mkfifo(tmp_path / "fifo")
    for name in ("second", "fifo"):
        with pytest.raises(SiteError, match="no plain file"):
            publish_image(store, digest_of(b""), str(tmp_path / name), {})
    with pytest.raises(OSError, match="symbolic links"):
        publish_image(store, digest_of(b""), str(tmp_path / "symlink"), {})
    assert files(store) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root takes files from another user")
def test_a_file_that_somebody_could_still_change_is_copied(store: Store) -> None:
    made = Path(store.tmp_directory) / "made"
    made.write_text("as checked")
    digest = digest_of(b"x")
    with made.open("r+b") as still_open:
        publish_image(store, digest, str(made), {"reference": "a", "config": None, "pulled": 0})
        still_open.write(b"changed!!!")
    assert Path(store.squashfs_path(digest)).read_text() == "as checked"


def test_removing_by_reference_keeps_what_others_name(store: Store) -> None:
    digest = add(store, "a:1", "a:2")
    assert remove(store, "a:1") == (digest, ["a:1"], ["a:2"])
    assert store.find("a:2") is not None
    assert remove(store, "a:2") == (digest, ["a:2"], [])
    assert files(store) == []
    with pytest.raises(UserError, match="cannot find the image a:2"):
        remove(store, "a:2")


@pytest.mark.parametrize("form", ["{0}", "{1}", "sha256:{2}", "{2}"])
def test_removing_by_digest_takes_all_references(store: Store, form: str) -> None:
    digest = add(store, "a:1", "a:2")
    stem = digest[7:]
    removed = remove(store, form.format(digest, stem, stem[:6]))
    assert (removed.digest, sorted(removed.references)) == (digest, ["a:1", "a:2"])
    assert files(store) == []


def test_digits_that_fit_two_images(store: Store) -> None:
    for last in "ab":
        Path(store.images_directory, "0" * 63 + last + ".sqsh").touch()
    with pytest.raises(UserError, match="cannot tell which image"):
        remove(store, "0" * 10)
    assert remove(store, "0" * 63 + "a").digest.endswith("0a")


def test_an_image_on_a_loop_device_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = add(store, "a:1")
    loop = tmp_path / "sys" / "block" / "loop7" / "loop"
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text(store.squashfs_path(digest) + "\n")
    monkeypatch.setattr(removal, "LOOP_FILES", f"{tmp_path}/sys/block/loop*/loop/backing_file")
    with pytest.raises(UserError, match="on this node uses it"):
        remove(store, "a:1")
    assert store.find("a:1") is not None


def test_finding_imports_little() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "from hpcwrap.image.store import Store; Store('/nowhere').find('a:1')\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    repository = str(Path(__file__).parents[2])
    loaded = subprocess.run(
        [sys.executable, "-SI", "-c", script, repository],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("hpcwrap.image.")}
    assert ours == {f"hpcwrap.image.{name}" for name in ("digest", "reference", "source", "store")}
    assert not {"hashlib", "pathlib", "subprocess", "dataclasses", "tempfile"} & set(loaded)


def test_documents_say_what_they_are(store: Store) -> None:
    digest = add(store, "a:1")
    document = json.loads(Path(store.document_path(digest)).read_text())
    assert (document["version"], document["digest"]) == (1, digest)


def test_a_pin_counts_only_where_the_reference_had_it(store: Store) -> None:
    first, second = add(store, "a:1", content="1"), add(store, "a:1", content="2")
    other = add(store, "b:1", content="3")
    link = store.find_link("a:1")
    assert link is not None
    assert link.history == (second, first)
    found = store.find("a:1")
    assert found is not None
    assert found.digest == second
    for pinned in (first, second):
        image = store.find_pinned("a:1", pinned)
        assert image is not None
        assert (image.digest, image.reference) == (pinned, "a:1")
    assert store.find_pinned("a:1", other) is None
    assert store.find_pinned("never:1", other) is None
    assert store.find_pinned(f"never@{other}", other) is not None
    publish_link(store, "a:1", first)
    link = store.find_link("a:1")
    assert link is not None
    assert link.history == (first, second)


def test_a_users_name_is_that_users_alone(store: Store) -> None:
    sites, anns = add(store, "a:1", content="1"), add(store, "b:1", content="2")
    publish_link(store, "a:1", anns, owner=7)
    for owner, digest in ((None, sites), (7, anns)):
        image, link = store.find("a:1", owner), store.find_link("a:1", owner)
        assert image is not None
        assert link is not None
        assert (image.digest, link.digest, link.owner) == (digest, digest, owner)
    assert store.find("a:1", 8) is None
    assert os.stat(store.ref_path("a:1", 7)).st_mode & 0o777 == 0o400
    assert len(store.links()[0]) == 3
    assert file_name("a", 7) != file_name("a%407")
    assert file_name("a" * 300, 7) != file_name("a" * 300)


def test_removing_a_reference_takes_the_users_links_of_it_too(store: Store) -> None:
    digest = add(store, "a:1")
    publish_link(store, "a:1", digest, owner=7)
    publish_link(store, "/home/u/x.sif", digest, owner=8)
    assert remove(store, "a:1").kept_for == ["/home/u/x.sif"]
    assert [link.reference for link in store.links()[0]] == ["/home/u/x.sif"]
    assert remove(store, "/home/u/x.sif").references == ["/home/u/x.sif"]
    assert files(store) == []


def test_histories_end(store: Store) -> None:
    digests = [digest_of(bytes([number])) for number in range(30)]
    for digest in digests:
        publish_link(store, "a:1", digest)
    link = store.find_link("a:1")
    assert link is not None
    assert link.history == tuple(reversed(digests[10:]))


def test_documents_of_older_stores_are_read(store: Store) -> None:
    digest = add(store, "a:1")
    new = ("uids", "checksum", "history", "failed", "failed_at", "stamp")
    for path in (store.document_path(digest), store.ref_path("a:1")):
        document = json.loads(Path(path).read_text())
        os.chmod(path, 0o644)
        kept = {key: value for key, value in document.items() if key not in new}
        Path(path).write_text(json.dumps(kept))
    image, link = store.find("a:1"), store.find_link("a:1")
    assert image is not None
    assert (image.uids, image.checksum) == ((), "")
    assert link is not None
    assert (link.history, link.failed, link.stamp) == ((digest,), "", "")


def test_a_failed_refresh_is_kept_until_one_works(store: Store) -> None:
    digest = add(store, "a:1")
    before = store.find_link("a:1")
    note_failure(store, "docker://a:1", "the registry is down")
    note_failure(store, "b:1", "nobody has that")
    link = store.find_link("a:1")
    assert before is not None
    assert link is not None
    assert link == before._replace(failed=link.failed, failed_at=link.failed_at)
    assert (link.failed, link.failed_at > before.resolved) == ("the registry is down", True)
    publish_link(store, "a:1", digest, stamp="1:2:3")
    link = store.find_link("a:1")
    assert link is not None
    assert (link.failed, link.stamp) == ("", "1:2:3")


def modes(store: Store, digest: str, *references: str) -> List[int]:
    paths = [store.squashfs_path(digest), store.document_path(digest)]
    paths += [store.ref_path(reference) for reference in references]
    return [os.stat(path).st_mode & 0o7777 for path in paths]


def test_private_images(store: Store) -> None:
    digest = add(store, "a:1", uids=[1001])
    assert modes(store, digest, "a:1") == [0o400] * 3
    os.utime(store.document_path(digest), (7, 7))
    grant(store, digest, 1002)
    grant(store, digest, 1002)
    image = store.find("a:1")
    assert image is not None
    assert (image.uids, image.used) == ((1001, 1002), 7)
    assert [allowed(image, uid) for uid in (0, 1001, 1002, 1003)] == [True, True, True, False]
    assert modes(store, digest, "a:1") == [0o400] * 3
    share(store, digest)
    image = store.find("a:1")
    assert image is not None
    assert image.uids == ()
    assert allowed(image, 1003)
    assert modes(store, digest, "a:1") == [0o444] * 3
    grant(store, digest, 1003)
    assert store.find("a:1") == image, "everyone's image stays everyone's"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_others_private_images_are_no_damage(store: Store, tmp_path: Path) -> None:
    add(store, "a:1", content="private", uids=[1001])
    add(store, "b:1", content="public")
    for directory in [tmp_path, *tmp_path.parents][:3]:
        os.chmod(directory, 0o755)

    def work(_: Report) -> Dict[str, Any]:
        (images, problems), (links, more) = store.images(), store.links()
        names = [image.reference for image in images] + [link.reference for link in links]
        return {"found": names, "problems": problems + more}

    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, 65534, 65534)
        told = work_as(NOBODY, directory, work, lambda _: None, 10)
    assert told == {"found": ["b:1", "b:1"], "problems": []}


def test_uses_are_noted_once_an_hour(store: Store) -> None:
    path = store.document_path(add(store, "a:1"))
    for used, moves in ((0, True), (time.time() - 3000, False), (time.time() - 4000, True)):
        os.utime(path, (used, used))
        image = store.find("a:1")
        assert image is not None
        touch_used(image)
        assert (os.stat(path).st_mtime > used + 1) is moves
