"""hpcwrap image …: gc, verify, export and import, as an administrator or a timer runs them."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from registries import REPOSITORY, Cli
from tars import Member, make_layer

from hpcwrap.image import lease
from hpcwrap.image.cache import bring
from hpcwrap.image.exchange import name_in
from hpcwrap.image.publish import change_document, publish_link
from hpcwrap.image.store import Store

pytestmark = pytest.mark.registry

TOOL = Member("bin/tool", content=b"x" * 9000, mode=0o755)
LAYER = make_layer([Member("bin", "dir", mode=0o755), TOOL])
CONFIG = {"Env": ["PATH=/bin", "A=b c"], "Cmd": ["/bin/tool"], "Labels": {"k": "v"}}
DAY = 86400


@pytest.fixture
def store(cli: Cli) -> Store:
    return Store(cli.store)


def age(store: Store, digest: str, days: float) -> None:
    """Make an image as if it was pulled and used so long ago."""
    path = Path(store.document_path(digest))
    then = time.time() - days * DAY
    document = {**json.loads(path.read_text()), "pulled": then}
    path.chmod(0o600)
    path.write_text(json.dumps(document))
    os.utime(path, (then, then))


def test_gc_removes_what_nobody_needs(push: Any, cli: Cli, store: Store) -> None:
    images = {
        name: push(f"gc/{name}:1", [make_layer([Member(name)])]) for name in ("old", "env", "new")
    }
    (cli.environments / "tool.yaml").write_text(f"image: {images['env'].reference}\n")
    for pushed in images.values():
        assert cli("pull", "--quiet", pushed.reference).returncode == 0
    for name in ("old", "env"):
        age(store, images[name].digest, 40)
    looked = cli("image", "gc", "--dry-run")
    name = f"{images['old'].reference} ({images['old'].digest[7:19]})"
    assert looked.stdout.startswith(f"would remove image {name}, ")
    assert "would free" in looked.stdout
    assert len(store.images()[0]) == 3
    done = json.loads(cli("image", "gc", "--json").stdout)
    assert [item["name"] for item in done if item["kind"] == "image"] == [name]
    assert {image.digest for image in store.images()[0]} == {
        images["env"].digest,
        images["new"].digest,
    }
    assert cli("image", "gc").stdout == f"nothing to remove in {cli.store}\n"
    assert cli("image", "gc", "--quiet").stdout == ""


def test_gc_keeps_the_store_to_its_size(push: Any, cli: Cli, store: Store) -> None:
    pushed = [push(f"size/{name}:1", [make_layer([Member(name)])]) for name in "abc"]
    for number, one in enumerate(pushed):
        cli("pull", "--quiet", one.reference)
        age(store, one.digest, 3 - number)
    lease.hold(store, pushed[0].digest, "n7", "42")
    size = store.images()[0][0].size
    with open(cli.settings, "a") as file:
        file.write(f"store_size: {2 * size + size // 2}\n")
    assert f"removed image {pushed[1].reference}" in cli("image", "gc").stdout
    kept = {image.digest for image in store.images()[0]}
    assert kept == {pushed[0].digest, pushed[2].digest}
    listed = json.loads(cli("images", "--json").stdout)
    assert [(job["node"], job["job"]) for row in listed for job in row["jobs"]] == [("n7", "42")]


def test_a_pull_keeps_the_store_to_its_size(push: Any, cli: Cli, store: Store) -> None:
    pushed = [push(f"bound/{name}:1", [make_layer([Member(name)])]) for name in "abc"]
    for number, one in enumerate(pushed[:2]):
        cli("pull", "--quiet", one.reference)
        age(store, one.digest, 3 - number)
    size = store.images()[0][0].size
    with open(cli.settings, "a") as file:
        file.write(f"store_size: {2 * size + size // 2}\n")
    assert cli("pull", "--quiet", pushed[2].reference).returncode == 0
    assert {image.digest for image in store.images()[0]} == {one.digest for one in pushed[1:]}


def test_gc_cleans_this_node_s_cache_too(push: Any, cli: Cli, store: Store, root: str) -> None:
    cache = Store(f"{root}/cache")
    for name in "ab":
        pushed = push(f"cached/{name}:1", [make_layer([Member(name)])])
        cli("pull", "--quiet", pushed.reference)
        image = store.find(pushed.reference)
        assert image is not None
        bring(store, cache, image, 1 << 30)
        os.utime(cache.document_path(image.digest), (9, ord(name)))
    with open(cli.settings, "a") as file:
        file.write(f"cache: {cache.root}\ncache_size: {image.size}\n")
    done = json.loads(cli("image", "gc", "--json").stdout)
    assert [item["name"].split(":1")[0][-1] for item in done if item["kind"] == "image"] == ["a"]
    assert len(store.images()[0]) == 2


def test_rm_says_which_job_uses_an_image(push: Any, cli: Cli, store: Store) -> None:
    pushed = push("held:1", [LAYER])
    cli("pull", "--quiet", pushed.reference)
    lease.hold(store, pushed.digest, "n7", "42")
    refused = cli("rm", pushed.reference)
    assert refused.returncode == 2
    assert "job 42 on n7 uses it" in refused.stderr
    lease.drop(store, pushed.digest, "n7", "42")
    assert cli("rm", pushed.reference).returncode == 0


def test_verify_finds_and_repairs(push: Any, cli: Cli, store: Store) -> None:
    assert cli("image", "verify").stdout == "there is no image to verify\n"
    pushed = push("verify:1", [LAYER])
    cli("pull", "--quiet", pushed.reference)
    assert cli("image", "verify", "--quiet").stdout == ""
    assert cli("image", "verify").stdout == "1 image and 1 reference are well\n"
    squashfs = Path(store.squashfs_path(pushed.digest))
    whole = squashfs.read_bytes()
    squashfs.chmod(0o600)
    with squashfs.open("r+b") as file:
        file.seek(200)
        file.write(b"damage")
    found = cli("image", "verify", pushed.reference)
    assert found.returncode == 3
    assert "is not what was written there" in found.stdout
    assert cli("image", "verify", "--quiet").stdout == found.stdout
    repaired = cli("image", "verify", "--repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    (image, reference) = json.loads(repaired.stdout)
    assert image["repair"].startswith("pulled again from ")
    assert reference["problem"] == ""
    assert squashfs.read_bytes() == whole
    assert cli("image", "verify").stdout == "1 image and 1 reference are well\n"
    assert [row["reference"] for row in json.loads(cli("images", "--json").stdout)] == [
        pushed.reference
    ]


def test_what_users_named_goes_by_that_name(push: Any, cli: Cli, store: Store) -> None:
    first, second = (push(f"named/{x}:1", [make_layer([Member(x)])]) for x in "ab")
    for pushed in (first, second):
        cli("pull", "--quiet", pushed.reference)
    publish_link(store, "/home/u/x.sif", first.digest, owner=7)
    assert cli("image", "verify", "/home/u/x.sif").stdout == "1 image is well\n"
    publish_link(store, "/home/u/x.sif", second.digest, owner=8)
    refused = cli("image", "verify", "/home/u/x.sif")
    assert refused.returncode == 2
    assert "cannot tell which image /home/u/x.sif is (name it by its digest: " in refused.stderr
    assert second.digest[7:19] in refused.stderr
    removal = cli("rm", "/home/u/x.sif")
    assert removal.returncode == 2
    assert "cannot tell which image /home/u/x.sif is: users have different" in removal.stderr
    rows = json.loads(cli("images", "--json").stdout)
    assert {row["owner"]: row["digest"] for row in rows if row["reference"] == "/home/u/x.sif"} == {
        7: first.digest,
        8: second.digest,
    }
    assert cli("images").stdout.count("/home/u/x.sif of ") == 2


def test_verify_tells_of_what_kills_left(push: Any, cli: Cli, store: Store) -> None:
    pushed = push("left:1", [LAYER])
    cli("pull", "--quiet", pushed.reference)
    os.unlink(store.document_path(pushed.digest))
    Path(store.refs_directory, ".x.new").touch()
    told = cli("image", "verify")
    assert (told.returncode, told.stdout.count("left by a killed")) == (0, 2)
    assert cli("image", "verify", "--repair").stdout.count("; removed") == 2
    assert cli("image", "verify").stdout == "1 reference is well\n"
    assert os.listdir(store.images_directory) == []


@pytest.fixture
def exported(push: Any, cli: Cli, root: str) -> Any:
    """A pushed image, and the file into which it was exported."""
    pushed = push("export/a:1", [LAYER], **CONFIG)
    cli("pull", "--quiet", pushed.reference)
    path = f"{root}/a.tar"
    done = cli("image", "export", pushed.reference, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{pushed.reference} ({pushed.digest[7:19]}) is in {path}: ")
    return pushed, path


def test_a_private_image_is_exported_for_who_exports_it(exported: Any, cli: Cli, root: str) -> None:
    pushed, path = exported
    assert os.stat(path).st_mode & 0o077 == 0o044
    change_document(Store(cli.store), pushed.digest, {"uids": [12001]})
    assert cli("image", "export", pushed.reference, f"{root}/private.tar").returncode == 0
    assert os.stat(f"{root}/private.tar").st_mode & 0o777 == 0o600


def test_export_is_an_image_for_skopeo(exported: Any) -> None:
    pushed, path = exported
    manifest = json.loads(skopeo("inspect", "--raw", f"oci-archive:{path}"))
    assert manifest["annotations"]["org.opencontainers.image.base.digest"] == pushed.digest
    config = json.loads(skopeo("inspect", "--config", f"oci-archive:{path}"))
    assert config["config"] == CONFIG
    assert skopeo("inspect", "--raw", f"docker-archive:{path}")


def test_what_is_exported_is_what_was_pushed(exported: Any, root: str) -> None:
    _, path = exported
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"oci-archive:{path}", f"dir:{root}/dir"], check=True
    )
    (layer,) = json.loads(Path(root, "dir", "manifest.json").read_text())["layers"]
    blob = Path(root, "dir", layer["digest"][7:]).read_bytes()
    plain = subprocess.run(["zstd", "-dc"], input=blob, capture_output=True, check=True).stdout
    Path(root, "layer.tar").write_bytes(plain)
    with tarfile.open(f"{root}/layer.tar") as tar:
        file = tar.extractfile("./bin/tool")
        assert file is not None
        assert file.read() == b"x" * 9000
        assert tar.getnames()[0] == "."


@pytest.fixture
def podman(root: str) -> Iterator[Any]:
    """podman with a storage of its own, which needs no overlay and no other container's."""
    words = ["podman", "--root", f"{root}/podman", "--runroot", f"{root}/podman-run"]
    words += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]

    def command(*more: str) -> str:
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield command
    subprocess.run([*words, "system", "reset", "--force"], capture_output=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="podman's storage is root's here")
def test_podman_loads_what_is_exported(exported: Any, podman: Any) -> None:
    pushed, path = exported
    assert pushed.reference in podman("load", "--quiet", "--input", path)
    (inspected,) = json.loads(podman("image", "inspect", pushed.reference))
    assert inspected["Config"]["Env"] == CONFIG["Env"]
    mounted = podman("image", "mount", pushed.reference).strip()
    assert Path(mounted, "bin", "tool").read_bytes() == b"x" * 9000
    podman("image", "unmount", pushed.reference)


def test_import_keeps_the_name(exported: Any, root: str) -> None:
    pushed, path = exported
    Path(root, "other").mkdir()
    other = Cli(f"{root}/other")
    done = other("image", "import", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{pushed.reference} is ready after ")
    (row,) = json.loads(other("images", "--json").stdout)
    assert (row["reference"], row["uids"]) == (pushed.reference, [])
    found = Store(other.store).find(pushed.reference)
    assert found is not None
    assert found.config.env == tuple(CONFIG["Env"])
    with open(other.settings, "a") as file:
        file.write("allow_images: ['h:1/*']\n")
    refused = other("image", "import", path)
    assert refused.returncode == 2
    assert pushed.reference in refused.stderr
    named = other("image", "import", path, "h:1/b:2")
    assert named.stdout.startswith("h:1/b:2 is in the store")
    assert len(json.loads(other("images", "--json").stdout)) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_export_to_a_full_disk(exported: Any, root: str, cli: Cli) -> None:
    pushed, _ = exported
    os.mkdir(f"{root}/small")
    options = ["-t", "tmpfs", "-o", "size=4k"]
    subprocess.run(["mount", *options, "tmpfs", f"{root}/small"], check=True)
    try:
        done = cli("image", "export", pushed.reference, f"{root}/small/a.tar")
        assert done.returncode == 2
        assert done.stderr == f"hpcwrap: cannot write {root}/small/a.tar: No space left on device\n"
        assert os.listdir(f"{root}/small") == []
    finally:
        subprocess.run(["umount", f"{root}/small"], check=True)


def test_export_gives_the_name_that_was_asked_for(exported: Any, root: str, cli: Cli) -> None:
    """Whoever pulled the image first may have called it by its digest, or by a file's path."""
    pushed, path = exported
    by_digest = f"{pushed.reference.rpartition(':')[0]}@{pushed.digest}"
    change_document(Store(cli.store), pushed.digest, {"reference": by_digest})
    assert cli("image", "import", path, "h:1/b:2").returncode == 0
    (own,) = [x for x in Store(cli.store).images()[0] if x.digest != pushed.digest]
    change_document(Store(cli.store), own.digest, {"reference": f"oci-archive:{path}"})
    for asked, name in ((pushed.digest[7:19], pushed.reference), ("h:1/b:2", "h:1/b:2")):
        file = f"{root}/{asked.partition('/')[0]}.tar"
        assert cli("image", "export", asked, file).returncode == 0
        assert name_in(file) == name


def test_a_round_trip_changes_no_byte_of_the_squashfs(exported: Any, root: str, cli: Cli) -> None:
    pushed, path = exported
    Path(root, "other").mkdir()
    other = Cli(f"{root}/other")
    assert other("image", "import", "--quiet", path).returncode == 0
    listed = [trees(Store(cli.store), pushed), trees(Store(other.store), pushed)]
    assert listed[0] == listed[1]


def trees(store: Store, pushed: Any) -> List[str]:
    """Modes, owners, sizes, times and names of all in an image."""
    image = store.find(pushed.reference)
    assert image is not None
    done = subprocess.run(
        ["unsquashfs", "-lln", image.squashfs], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_files_that_cannot_be_exchanged(cli: Cli, push: Any, root: str) -> None:
    pushed = push("export/b:1", [LAYER])
    cli("pull", "--quiet", pushed.reference)
    Path(root, "there").write_text("mine")
    refused = cli("image", "export", pushed.reference, f"{root}/there")
    assert (refused.returncode, Path(root, "there").read_text()) == (2, "mine")
    assert "File exists" in refused.stderr
    for name in ("there", "nowhere"):
        refused = cli("image", "import", f"{root}/{name}")
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
    assert cli("image", "export", "no/such:1", f"{root}/new").returncode == 2
    assert not Path(root, "new").exists()


def test_a_damaged_image_is_not_exported(cli: Cli, push: Any, store: Store, root: str) -> None:
    pushed = push("export/c:1", [LAYER])
    cli("pull", "--quiet", pushed.reference)
    squashfs = Path(store.squashfs_path(pushed.digest))
    squashfs.chmod(0o600)
    os.truncate(squashfs, 50)
    refused = cli("image", "export", pushed.reference, f"{root}/new")
    assert refused.returncode == 3
    assert "cannot export" in refused.stderr
    assert not Path(root, "new").exists()
    assert not os.path.exists(store.leases_directory) or os.listdir(store.leases_directory) == []


def skopeo(*words: str) -> str:
    done = subprocess.run(["skopeo", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_gc_is_refused_in_a_sentence(push: Any, cli: Cli) -> None:
    pushed = push("gc/refused:1", [LAYER])
    cli("pull", "--quiet", pushed.reference)
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
    done = subprocess.run(
        [*words, *cli.argv("image", "gc", "--dry-run")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"hpcwrap: cannot change the store {cli.store}: it is not yours (become root)\n"
    )
