"""Images that lie on this machine: each source made by its own tool, pulled by the command line,
and compared with the tree that it was made of.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import pytest
from registries import CONFIG as CONFIG_TYPE
from registries import INDEX, LAYER, MANIFEST, Cli, Layout
from sifs import JSON, Thing, make_sif, partition
from trees import Groups, Tree, mounted, read_tree

from hpcwrap.config import load_config
from hpcwrap.errors import UserError
from hpcwrap.image.pull import pull
from hpcwrap.image.puller import PullOptions
from hpcwrap.image.store import Store
from hpcwrap.job import User
from hpcwrap.verbs.pull import reference_of

pytestmark = [
    pytest.mark.registry,
    pytest.mark.privileged,
    pytest.mark.skipif(
        not shutil.which("sqfs2tar"), reason="needs squashfs-tools-ng (see tools/packages)"
    ),
]

CONFIG = {"Env": ["PATH=/usr/bin", "X=a b"], "WorkingDir": "/opt", "Cmd": ["tool"]}
SCRIPT = 'export PATH="/usr/bin"\nexport X="${X:-"a b"}"\n'
HERE = os.uname().machine


class Made(NamedTuple):
    """The tree, and where the sources are that were made of it."""

    directory: Path
    tree: Path


@pytest.fixture(name="made")
def make_tree(root: str) -> Made:
    """A root file system with what an image can keep, and what it cannot."""
    tree = Path(root, "tree")
    for name in ("usr/bin", "etc", "opt/empty", "var/" + "long" * 30):
        (tree / name).mkdir(parents=True)
    (tree / "usr/bin/tool").write_bytes(os.urandom(3 << 20))
    (tree / "usr/bin/tool").chmod(0o755)
    (tree / "usr/bin/tööl").symlink_to("tool")
    (tree / "bin").symlink_to("usr/bin")
    (tree / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    os.link(tree / "etc/passwd", tree / "opt/passwd")
    os.chown(tree / "opt/empty", 1234, 70000)
    (tree / "opt/empty").chmod(0o1777)
    (tree / ("var/" + "long" * 30) / ("name" * 40)).write_text("deep")
    with (tree / "var/sparse").open("wb") as sparse:
        sparse.truncate(5 << 20)
        sparse.seek(2 << 20)
        sparse.write(b"middle")
    os.mkfifo(tree / "var/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "var/socket"))
    for name in ("bin", "usr/bin/tool", "etc", "opt/empty"):
        os.utime(tree / name, (1_500_000_000, 1_500_000_000.75), follow_symlinks=False)
    return Made(Path(root), tree)


def run(*argv: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in argv], check=True, capture_output=True, text=True, **more
    )


def skopeo(made: Made, *words: Any) -> None:
    run("skopeo", *words, env={**os.environ, "XDG_RUNTIME_DIR": str(made.directory)})


def make_tar(made: Made, *options: str) -> Path:
    target = made.directory / "tree.tar"
    run("tar", *options, "-cf", target, "-C", made.tree, ".")
    return target


def make_layout(made: Made) -> Path:
    """An OCI image layout with the tree as its one layer, tagged v1."""
    layout = Layout(made.directory / "layout")
    plain = make_tar(made).read_bytes()
    layer = layout.blob(gzip.compress(plain, 1), LAYER)
    ids = [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    about = {"architecture": "amd64", "os": "linux", "config": CONFIG}
    about["rootfs"] = {"type": "layers", "diff_ids": ids}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer]}
    manifest["config"] = layout.document(about, CONFIG_TYPE)
    layout.tag(layout.document(manifest, MANIFEST), "v1")
    return layout.root


def copied(made: Made, target: str) -> str:
    """The image of the layout, as skopeo writes it elsewhere."""
    transport, _, name = target.partition(":")
    path, _, tag = name.partition(":")
    path = str(made.directory / path)
    to = f"{transport}:{path}" + (f":{tag}" if tag else "")
    skopeo(made, "copy", "--quiet", f"oci:{make_layout(made)}:v1", to)
    return path


def make_squashfs(made: Made, *more: str) -> Path:
    target = made.directory / "tree.sqsh"
    run("mksquashfs", made.tree, target, "-quiet", "-no-progress", *more)
    return target


def make_sif_file(made: Made, *things: Thing) -> str:
    squashfs = make_squashfs(made).read_bytes()
    target = made.directory / "tree.sif"
    target.write_bytes(make_sif([*things, partition(squashfs, HERE)]))
    return str(target)


def make_sif_with_config(made: Made) -> str:
    return make_sif_file(made, Thing(JSON, json.dumps(CONFIG).encode(), "oci-config.json"))


def make_sif_with_scripts(made: Made) -> str:
    scripts = made.tree / ".singularity.d/env"
    scripts.mkdir(parents=True)
    (scripts / "10-docker2singularity.sh").write_text(SCRIPT)
    return make_sif_file(made)


def packed(made: Made, option: str) -> str:
    return str(make_tar(made, option))


def docker_save(made: Made) -> str:
    """A docker-archive, compressed as people do."""
    path = copied(made, "docker-archive:saved.tar")
    run("gzip", path)
    return path + ".gz"


BARE: Dict[str, Any] = {}
VARIABLES = {"Env": CONFIG["Env"]}
SOURCES = {
    # source → how it is made, prefix of the path, configuration that the image has
    "rootfs": (lambda made: str(made.tree), "rootfs:", BARE),
    "directory": (lambda made: str(made.tree), "", BARE),
    "tar": (lambda made: str(make_tar(made)), "tar:", BARE),
    "posix": (lambda made: packed(made, "--format=posix"), "", BARE),
    "gzip": (lambda made: packed(made, "-z"), "", BARE),
    "zstd": (lambda made: packed(made, "--zstd"), "tar:", BARE),
    "xz": (lambda made: packed(made, "-J"), "", BARE),
    "bzip2": (lambda made: packed(made, "-j"), "", BARE),
    "sparse": (lambda made: packed(made, "--sparse"), "", BARE),
    "squashfs": (lambda made: str(make_squashfs(made)), "squashfs:", BARE),
    "zstd-squashfs": (lambda made: str(make_squashfs(made, "-comp", "zstd")), "", BARE),
    "sif": (make_sif_with_config, "sif:", CONFIG),
    "sif-scripts": (make_sif_with_scripts, "", VARIABLES),
    "oci": (lambda made: str(make_layout(made)), "oci:", CONFIG),
    "oci-name": (lambda made: f"{make_layout(made)}:v1", "oci:", CONFIG),
    "oci-directory": (lambda made: str(make_layout(made)), "", CONFIG),
    "oci-archive": (lambda made: copied(made, "oci-archive:a.tar"), "oci-archive:", CONFIG),
    "oci-file": (lambda made: copied(made, "oci-archive:a.tar"), "", CONFIG),
    "docker-archive": (
        lambda made: copied(made, "docker-archive:a.tar"),
        "docker-archive:",
        CONFIG,
    ),
    "docker-gzip": (docker_save, "", CONFIG),
    "dir": (lambda made: copied(made, "dir:layers"), "dir:", CONFIG),
    "dir-directory": (lambda made: copied(made, "dir:layers"), "", CONFIG),
}


def pulled(cli: Cli, *words: str) -> Dict[str, Any]:
    """What `hpcwrap pull --json` says of an image that it got."""
    done = cli("pull", "--json", *words)
    assert done.returncode == 0, done.stderr
    document: Dict[str, Any] = json.loads(done.stdout)
    stem = Path(document["squashfs"]).with_suffix(".json")
    document["config"] = json.loads(stem.read_text())["config"]
    return document


def refused(cli: Cli, *words: str) -> str:
    """What it says of one that it did not."""
    done = cli("pull", *words)
    assert done.returncode not in (0, 70), done.stderr
    assert "Traceback" not in done.stderr
    assert cli("images", "--json").stdout.strip() == "[]"
    return done.stderr


def expected(tree: Path) -> Tuple[Tree, Groups]:
    """The tree, less what images do not keep: sockets (tar(5) has no type for them)."""
    files, groups = read_tree(str(tree))
    return {name: file for name, file in files.items() if file.kind != "socket"}, groups


@pytest.mark.parametrize("name", SOURCES)
def test_the_image_is_the_tree(cli: Cli, made: Made, tmp_path: Path, name: str) -> None:
    make, prefix, config = SOURCES[name]
    document = pulled(cli, prefix + make(made))
    with mounted(document["squashfs"], tmp_path / "mounted") as directory:
        assert read_tree(directory) == expected(made.tree)
    found = {key: value for key, value in document["config"].items() if value}
    assert found == config
    assert document["new"]
    assert os.listdir(cli.store + "/tmp") == []


def test_one_file_is_one_image_wherever_it_lies(cli: Cli, made: Made) -> None:
    first = make_tar(made)
    second = shutil.copy(first, made.directory / "other.tar")
    document = pulled(cli, str(first))
    for source in (f"tar:{first}", str(second)):
        again = pulled(cli, source)
        assert (again["digest"], again["new"]) == (document["digest"], False)


def test_one_directory_is_one_image_whenever_it_is_read(cli: Cli, made: Made) -> None:
    digests = {pulled(cli, f"rootfs:{made.tree}")["digest"] for _ in range(2)}
    assert len(digests) == 1
    (made.tree / "etc/more").write_text("x")
    assert pulled(cli, f"rootfs:{made.tree}")["digest"] not in digests


def test_a_file_that_changed_is_read_again(cli: Cli, made: Made) -> None:
    first = pulled(cli, str(make_tar(made)))
    (made.tree / "etc/more").write_text("x")
    assert pulled(cli, str(make_tar(made)))["digest"] != first["digest"]


def test_an_archive_keeps_the_digest_that_a_registry_gives(cli: Cli, made: Made) -> None:
    archive = copied(made, "oci-archive:a.tar")
    index = json.loads((made.directory / "layout/index.json").read_text())
    assert pulled(cli, archive)["digest"] == index["manifests"][0]["digest"]


def test_an_environment_can_have_any_source(cli: Cli, made: Made) -> None:
    (cli.environments / "mine.yaml").write_text(f"image: rootfs:{made.tree}\n")
    assert cli("config", "--check").returncode == 0
    assert pulled(cli, "mine")["reference"] == f"rootfs:{made.tree}"
    rows = json.loads(cli("images", "--json").stdout)
    assert [row["environments"] for row in rows] == [["mine"]]


def test_the_name_of_a_file_is_a_reference(
    cli: Cli, made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made.tree)
    for name, warns in (("etc", True), ("nothing", False), (f"{made.tree}/etc", False)):
        assert reference_of(load_config(cli.settings), name) == name
        assert (f"the file here is {made.tree}/{name}" in capsys.readouterr().err) == warns


def test_of_an_archive_of_several_images_one_is_named(cli: Cli, made: Made) -> None:
    archive = made.directory / "two.tar"
    merge(copied(made, "docker-archive:a.tar:h/a:1"), ["h/a:1", "h/b:2"], archive)
    said = refused(cli, str(archive))
    assert "is an archive of several images" in said
    assert "a colon and the image's name" in said
    assert "without an image of that name" in refused(cli, f"docker-archive:{archive}:h/c:3")
    assert pulled(cli, f"docker-archive:{archive}:h/b:2")["new"]


def merge(archive: str, names: List[str], target: Path) -> None:
    """A docker-archive with its one image twice, under two names."""
    directory = target.parent / "merged"
    run("tar", "--one-top-level=" + str(directory), "-xf", archive)
    entry = json.loads((directory / "manifest.json").read_text())[0]
    entries = [{**entry, "RepoTags": [name]} for name in names]
    (directory / "manifest.json").write_text(json.dumps(entries))
    (directory / "repositories").unlink()
    run("tar", "-cf", target, "-C", directory, *os.listdir(directory))


def index_of(made: Made, *architectures: str) -> str:
    layout = Layout(made.directory / "layout")
    entries = []
    for architecture in architectures:
        entry = layout.image([make_tar(made, "-z").read_bytes()], {"User": architecture})
        platform = {"os": "linux", "architecture": architecture}
        entries.append({**entry, "platform": platform})
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    index = {"schemaVersion": 2, "manifests": [layout.document(document, INDEX)]}
    (layout.root / "index.json").write_text(json.dumps(index))
    return str(layout.root)


@pytest.mark.skipif(HERE != "x86_64", reason="the layout is written for x86_64")
def test_a_layout_for_several_machines_gives_this_ones(cli: Cli, made: Made) -> None:
    document = pulled(cli, index_of(made, "s390x", "amd64", "arm64"))
    assert document["config"]["User"] == "amd64"


def test_a_layout_for_other_machines(cli: Cli, made: Made) -> None:
    assert "not for this machine" in refused(cli, index_of(made, "mips64le"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda made: cut(make_squashfs(made), 4096), "its squashfs is damaged"),
        (lambda made: cut(Path(make_sif_with_config(made)), 40000), "ends before its objects"),
        (lambda made: cut(make_tar(made), 1 << 20), "ends early, in"),
        (lambda made: cut(make_tar(made, "-z"), 1 << 20), "damaged or ends early"),
        (lambda made: cut(Path(copied(made, "oci-archive:a.tar")), 20000), "not a whole one"),
        (lambda made: cut(Path(copied(made, "docker-archive:a.tar")), 1 << 20), "not a whole one"),
        (lambda made: cut(Path(make_layout(made), "index.json"), 0).parent, "is broken"),
    ],
    ids=["squashfs", "sif", "tar", "gzip", "oci-archive", "docker-archive", "layout"],
)
def test_broken_files(cli: Cli, made: Made, make: Any, reason: str) -> None:
    assert reason in refused(cli, str(make(made)))
    assert os.listdir(cli.store + "/tmp") == []


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda made: str(make_tar(made)), "2m"),
        (lambda made: copied(made, "oci-archive:a.tar"), "5m"),
        (docker_save, "5m"),
        (make_sif_with_config, "5m"),
        (make_sif_with_config, "8m"),
    ],
    ids=["tar", "oci-archive", "docker-archive", "sif", "sqfs2tar"],
)
def test_a_store_that_is_full(cli: Cli, made: Made, make: Any, size: str) -> None:
    path = make(made)
    os.mkdir(cli.store)
    run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", cli.store)
    try:
        assert "the store is full" in refused(cli, path)
        assert os.listdir(cli.store + "/tmp") == []
    finally:
        run("umount", cli.store)


def cut(path: Path, size: int) -> Path:
    os.truncate(path, size)
    return path


def test_a_blob_with_another_content_than_its_name(cli: Cli, made: Made) -> None:
    path = Path(copied(made, "dir:layers"))
    layer = max((file for file in path.iterdir()), key=lambda file: file.stat().st_size)
    layer.write_bytes(layer.read_bytes()[::-1])
    assert f"the content of {layer.name} has another digest" in refused(cli, str(path))


def test_what_the_user_says_must_be_true(cli: Cli, made: Made) -> None:
    assert "is not sif: but squashfs:" in refused(cli, f"sif:{make_squashfs(made)}")
    assert "is not squashfs: but tar:" in refused(cli, f"squashfs:{make_tar(made)}")
    assert "no image that hpcwrap knows" in refused(cli, str(made.tree / "etc/passwd"))


def test_a_directory_that_is_no_root(cli: Cli, made: Made) -> None:
    said = refused(cli, str(made.tree / "opt"))
    assert "holds no image and no root file system" in said
    assert pulled(cli, f"rootfs:{made.tree}/opt")["new"]


def test_a_user_gets_only_what_the_user_may_read(root: str, made: Made) -> None:
    archive = make_tar(made)
    archive.chmod(0o400)
    mine = PullOptions(user=User("mine", 65533, 65533, (65533,), "/"), named_by_user=True)
    other = mine._replace(user=User("other", 65532, 65532, (65532,), "/"))
    store = Store(root + "/store")
    with pytest.raises(UserError, match="the uid 65533 has no permission"):
        pull(str(archive), store, mine)
    os.chown(archive, 65533, 65533)
    pulled = pull(f"tar:{archive}", store, mine)
    assert (pulled.new, pulled.image.uids) == (True, (65533,))
    with pytest.raises(UserError, match="the uid 65532 has no permission"):
        pull(f"tar:{archive}", store, other)
    assert [image.uids for image in store.images()[0]] == [(65533,)]
    archive.chmod(0o444)
    again = pull(f"tar:{archive}", store, other)
    assert (again.new, set(again.image.uids)) == (False, {65533, 65532})


def test_an_image_in_podmans_storage(cli: Cli, made: Made) -> None:
    name = f"containers-storage:localhost/hpcwrap-test-{os.getpid()}:1"
    try:
        skopeo(made, "copy", "--quiet", f"oci:{make_layout(made)}:v1", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"containers-storage does not work here: {error.stderr}")
    try:
        document = pulled(cli, name)
    finally:
        skopeo(made, "delete", name)
    assert document["config"]["WorkingDir"] == "/opt"
    assert "does not resolve to an image" in cli("pull", name).stderr


def test_an_image_in_a_docker_that_does_not_run(cli: Cli, made: Made) -> None:
    if os.path.exists("/var/run/docker.sock"):
        pytest.skip("a Docker daemon is here")
    assert "Cannot connect to the Docker daemon" in refused(cli, "docker-daemon:debian:12")
