"""Pulling from a real registry with the real skopeo and the real mksquashfs."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, List

import pytest
from registries import INDEX, Registry, free_port
from tars import Member, make_layer

from hpcwrap.errors import SiteError, UserError
from hpcwrap.image import convert
from hpcwrap.image.pull import pull
from hpcwrap.image.puller import PullOptions
from hpcwrap.image.store import Store
from hpcwrap.image.worker import Progress

pytestmark = pytest.mark.registry

BASE = make_layer(
    [
        Member("bin", "symlink", link="usr/bin"),
        Member("usr/bin", "dir", mode=0o755),
        Member("usr/bin/tool", content=b"one" * 1000, mode=0o4755),
        Member("etc/gone", content=b"x"),
    ]
)
UPPER = make_layer([Member("etc/.wh.gone"), Member("bin/more", content=b"two", uid=1000)])
CONFIG = {"Env": ["PATH=/usr/bin", "LANG=C"], "WorkingDir": "/data", "Cmd": ["tool"]}


@pytest.fixture(name="store")
def make_store(root: str) -> Store:
    return Store(root + "/store")


def names_in(squashfs: str) -> List[str]:
    text = subprocess.run(
        ["unsquashfs", "-l", squashfs], check=True, capture_output=True, text=True
    ).stdout
    return sorted(line.partition("/")[2] for line in text.splitlines() if "/" in line)


def left_in_tmp(store: Store) -> List[str]:
    return os.listdir(store.tmp_directory)


def test_an_image_comes_into_the_store(push: Any, store: Store) -> None:
    pushed = push("team/tool:1", [BASE, UPPER], **CONFIG)
    seen: List[Progress] = []
    pulled = pull(pushed.reference, store, on_progress=seen.append)
    image = pulled.image
    assert pulled.new
    assert image.digest == pushed.digest
    assert image.config.env == ("PATH=/usr/bin", "LANG=C")
    assert (image.config.workdir, image.config.cmd) == ("/data", ("tool",))
    assert names_in(image.squashfs) == [
        "bin",
        "etc",
        "usr",
        "usr/bin",
        "usr/bin/more",
        "usr/bin/tool",
    ]
    assert set(pulled.milliseconds) == {"resolve", "download", "unpack", "convert", "publish"}
    stages = ["resolve", "notice", "download", "index", "convert"]
    assert [*dict.fromkeys(p.stage for p in seen)] == stages
    assert left_in_tmp(store) == []
    assert store.find(pushed.reference) == image


def test_what_root_publishes_is_roots_and_read_only(push: Any, store: Store) -> None:
    image = pull(push("owner:1", [BASE]).reference, store).image
    for path in (image.squashfs, store.document_path(image.digest)):
        found = os.stat(path)
        assert (found.st_uid, found.st_mode & 0o7777) == (os.geteuid(), 0o444)


def test_the_document_tells_where_the_image_is_from(push: Any, store: Store) -> None:
    pushed = push("document:1", [BASE, UPPER])
    image = pull(pushed.reference, store).image
    document = json.loads(Path(store.document_path(image.digest)).read_text())
    assert document["reference"] == pushed.reference
    assert document["layers"] == pushed.layers
    assert document["entries"] == 6
    assert document["unpacked_size"] > document["compressed_size"] > 0


def test_a_second_pull_downloads_nothing(push: Any, store: Store, registry: Any) -> None:
    pushed = push("twice:1", [BASE, UPPER])
    pull(pushed.reference, store)
    counts = [registry.downloads(layer) for layer in pushed.layers]
    again = pull(pushed.reference, store)
    other_name = pull(f"{registry.host}/twice@{pushed.digest}", store)
    assert not again.new
    assert not other_name.new
    assert other_name.image.squashfs == again.image.squashfs
    assert [registry.downloads(layer) for layer in pushed.layers] == counts


def test_a_tag_that_moved_is_followed(push: Any, store: Store) -> None:
    first = push("moving:1", [BASE])
    pull(first.reference, store)
    second = push("moving:1", [BASE, UPPER])
    pulled = pull(first.reference, store)
    assert pulled.new
    assert pulled.image.digest == second.digest != first.digest
    by_digest = store.find_digest(first.digest)
    assert by_digest is not None


def test_an_index_gives_this_machines_image(
    layout: Any, registry: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = []
    for architecture, layer in (("s390x", UPPER), ("amd64", BASE), ("arm64", UPPER)):
        entry = layout.image([gzip.compress(layer)], {"User": architecture})
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    index = layout.document(document, INDEX)
    layout.push(index, f"{registry.host}/index:1")
    monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "n", "6", "1", "x86_64")))
    image = pull(f"{registry.host}/index:1", store).image
    assert (image.digest, image.config.user) == (entries[1]["digest"], "amd64")
    assert pull(f"{registry.host}/index@{index['digest']}", store).image.digest == image.digest
    monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "n", "6", "1", "ppc64le")))
    with pytest.raises(UserError, match="not for this machine") as caught:
        pull(f"{registry.host}/index:1", store)
    assert "linux/amd64, linux/arm64, linux/s390x" in caught.value.hint


@pytest.mark.parametrize("name", ["no/such:1", "known:2", "known@sha256:" + "0" * 64])
def test_what_the_registry_does_not_have(push: Any, store: Store, registry: Any, name: str) -> None:
    push("known:1", [BASE])
    with pytest.raises(UserError, match="the registry does not have it") as caught:
        pull(f"{registry.host}/{name}", store)
    assert f"{registry.host}/{name}" in caught.value.message
    assert left_in_tmp(store) == []


def test_a_registry_that_is_down(store: Store) -> None:
    with pytest.raises(SiteError, match=r"127\.0\.0\.1:\d+/a:1: the registry cannot be reached"):
        pull(f"127.0.0.1:{free_port()}/a:1", store)


def test_a_registry_that_wants_a_password(store: Store, tmp_path: Path) -> None:
    registry = Registry(tmp_path, f"auth: {{htpasswd: {{realm: here, path: {tmp_path}/users}}}}")
    try:
        with pytest.raises(UserError, match="without a password"):
            pull(f"{registry.host}/private:1", store)
    finally:
        registry.stop()


CUT = gzip.compress(BASE, 1)[:-20]
SHORT = gzip.compress(BASE[:2000], 1)
HUGE_NAME = gzip.compress(make_layer([Member("x" * 300)]))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (CUT, "cannot be decompressed, it is damaged or ends early"),
        (SHORT, "ends early, in usr/bin/tool"),
        (HUGE_NAME, "has a name that is too long"),
        (gzip.compress(b"no tar" * 1000), "has a header"),
    ],
    ids=["cut", "short", "name", "no-tar"],
)
def test_broken_layers_are_the_users_error(
    push: Any, store: Store, layer: bytes, reason: str, request: pytest.FixtureRequest
) -> None:
    pushed = push(f"broken:{request.node.callspec.id}", [UPPER, layer])
    with pytest.raises(UserError) as caught:
        pull(pushed.reference, store)
    assert f"the image {pushed.reference} is broken: layer 2 of 2 {reason}" in caught.value.message
    assert left_in_tmp(store) == []
    assert store.images() == ([], [])


def test_an_image_without_layers_is_an_empty_one(push: Any, store: Store) -> None:
    assert names_in(pull(push("empty:1", []).reference, store).image.squashfs) == []


def test_the_same_layer_twice(push: Any, store: Store) -> None:
    image = pull(push("same:1", [BASE, UPPER, BASE]).reference, store).image
    assert "etc/gone" in names_in(image.squashfs)


def test_an_impatient_site(push: Any, store: Store) -> None:
    pushed = push("slow:1", [BASE])
    with pytest.raises(SiteError, match="longer than the site allows"):
        pull(pushed.reference, store, PullOptions(timeout=0.01))
    assert left_in_tmp(store) == []


def test_two_pullers_download_once(push: Any, cli: Any, registry: Any) -> None:
    layer = make_layer([Member("big", content=os.urandom(30_000_000))])
    pushed = push("race:1", [layer])
    children = [cli.start("pull", "--json", pushed.reference) for _ in range(3)]
    results = [(*child.communicate(timeout=60), child.returncode) for child in children]
    assert [code for _, _, code in results] == [0, 0, 0], results
    assert sorted(json.loads(out)["new"] for out, _, _ in results) == [False, False, True]
    assert registry.downloads(pushed.layers[0]) == 1


def test_a_killed_pull_is_mended_by_the_next(push: Any, cli: Any) -> None:
    layer = make_layer([Member("big", content=os.urandom(60_000_000))])
    pushed = push("killed:1", [layer])
    child = cli.start("pull", "--json", pushed.reference)
    store = Store(cli.store)
    while not any(Path(store.tmp_directory).glob("pull-*/download/oci-put-blob*")):
        assert child.poll() is None, child.communicate()
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.communicate()
    assert left_in_tmp(store) != []
    for _ in range(200):
        if not workers_in(store.tmp_directory):
            break
        time.sleep(0.02)
    assert workers_in(store.tmp_directory) == []
    result = cli("pull", "--json", pushed.reference)
    assert result.returncode == 0, result.stderr
    assert left_in_tmp(store) == []
    assert names_in(json.loads(result.stdout)["squashfs"]) == ["big"]


def test_a_blob_that_is_not_what_its_digest_says(push: Any, store: Store, registry: Any) -> None:
    layers = [
        gzip.compress(make_layer([Member("big", content=os.urandom(9_000_000))]), 0)
        for _ in range(2)
    ]
    pushed = push("changed:1", layers)
    data = next(registry.root.rglob(f"{pushed.layers[0].partition(':')[2]}/data"))
    data.write_bytes(layers[1])
    with pytest.raises(SiteError, match="igest did not match"):
        pull(pushed.reference, store)
    assert (store.images(), left_in_tmp(store)) == (([], []), [])


def workers_in(directory: str) -> List[str]:
    """What runs in a directory or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith(directory):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has ended
    return found


def test_the_same_image_in_two_stores_is_the_same_file(push: Any, root: str) -> None:
    pushed = push("bytes:1", [BASE, UPPER])
    made = [pull(pushed.reference, Store(f"{root}/{name}")).image for name in "ab"]
    assert Path(made[0].squashfs).read_bytes() == Path(made[1].squashfs).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has an image user")
def test_registry_data_is_read_by_the_image_user(
    push: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = convert.fetch

    def spy(*arguments: Any) -> Any:
        fetched = fetch(*arguments)
        return fetched._replace(config={"User": str(os.geteuid()), "Env": [os.getcwd()]})

    monkeypatch.setattr(convert, "fetch", spy)
    image = pull(push("who:1", [BASE]).reference, store, PullOptions(image_user="nobody")).image
    assert image.config.user == "65534"
    assert image.config.env[0].startswith(store.tmp_directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has an image user")
@pytest.mark.parametrize(("user", "reason"), [("root", "as root"), ("no-such-user", "cannot find")])
def test_image_users_that_will_not_do(store: Store, user: str, reason: str) -> None:
    with pytest.raises(SiteError, match=reason):
        pull("127.0.0.1:1/a", store, PullOptions(image_user=user))
