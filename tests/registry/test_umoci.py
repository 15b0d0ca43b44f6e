"""The same tree as umoci unpacks: from layers made by chance, and from real images.

What hpcwrap leaves out on purpose is left out of umoci's tree too: device nodes, setuid and setgid
bits, extended attributes outside of the namespace user (docs/decisions/0011 and 0014).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

import pytest
from registries import CONFIG, LAYER, MANIFEST, REPOSITORY, Layout, Registry
from stacks import make_stack
from tars import plan_of, read_stream, stream_of
from trees import Groups, Tree, mounted, read_tree

from hpcwrap.image.download import Format
from hpcwrap.image.pull import pull
from hpcwrap.image.squashfs import write_squashfs
from hpcwrap.image.store import Store

pytestmark = [
    pytest.mark.registry,
    pytest.mark.privileged,
    pytest.mark.skipif(not shutil.which("umoci"), reason="needs umoci (see tools/packages)"),
]

NOW = -1
PLAIN = LAYER.replace("+gzip", "")
SEEDS = int(os.environ.get("HPCWRAP_SEEDS", "40"))


def write_layout(layout: Layout, layers: Sequence[bytes]) -> None:
    """An image with the tag `it`; umoci checks the digests of the plain layers."""
    blobs = []
    for number, layer in enumerate(layers):
        plain = number % 3 == 2
        content = layer if plain else gzip.compress(layer, 1)
        blobs.append(layout.blob(content, PLAIN if plain else LAYER))
    ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    rootfs = {"type": "layers", "diff_ids": ids}
    config = layout.document({"architecture": "amd64", "os": "linux", "rootfs": rootfs}, CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": blobs, "config": config}
    layout.tag(layout.document(manifest, MANIFEST), "it")


def umoci_tree(layout: str, directory: Path) -> Tuple[Tree, Groups]:
    """What umoci unpacks, less what hpcwrap drops on purpose."""
    began = int(time.time())
    result = subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:it", str(directory)],
        check=False,
        capture_output=True,
        errors="replace",
        umask=0o022,
    )
    assert result.returncode == 0, result.stderr
    tree, groups = read_tree(str(directory))
    kept = {}
    for name, file in tree.items():
        if file.kind == "device":
            continue
        tags = tuple(pair for pair in file.attributes if pair[0].startswith("user."))
        # umoci makes a directory that no layer describes, and does not give the one that it makes
        # that in its own time back.
        mtime = NOW if file.kind == "dir" and began <= file.mtime < 2**31 - 1 else file.mtime
        kept[name] = file._replace(mode=file.mode & 0o1777, attributes=tags, mtime=mtime)
    return kept, frozenset(group for group in groups if group <= kept.keys())


def our_tree(layers: Sequence[bytes], directory: Path) -> Tuple[Tree, Groups]:
    """What is in the squashfs that hpcwrap makes."""
    output = str(directory / "image.sqsh")
    files = []
    for layer in layers:
        files.append(tempfile.TemporaryFile())  # noqa: SIM115  they live as long as the test
        files[-1].write(layer)
        files[-1].flush()
    write_squashfs(plan_of(layers), files, output, Format(), lambda _: None)
    with mounted(output, directory / "mnt") as root:
        return read_tree(root)


def differences(ours: Tree, theirs: Tree) -> Dict[bytes, Any]:
    """Name → what we have, what they have."""
    found = {}
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name)
        if mine and other and other.mtime == NOW:
            mine = mine._replace(mtime=NOW)
        if mine != other:
            found[name] = (mine, other)
    return found


def copy(*words: str) -> None:
    """Let skopeo copy an image."""
    subprocess.run(["skopeo", "copy", "--quiet", "--preserve-digests", *words], check=True)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_layers_made_by_chance(layout: Layout, tmp_path: Path, seed: int) -> None:
    stack = [layer.content for layer in make_stack(seed)]
    write_layout(layout, stack)
    theirs, their_groups = umoci_tree(str(layout.root), tmp_path / "umoci")
    ours, our_groups = our_tree(stack, tmp_path)
    assert differences(ours, theirs) == {}
    assert our_groups == their_groups


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whiteouts_concern_lower_layers_wherever_they_stand(seed: int) -> None:
    # umoci reads them in their turn, and fails where a name below needs the old one gone.
    stack = make_stack(seed)
    first, last = [layer.content for layer in stack], [layer.late for layer in stack]
    merged = [read_stream(stream_of(plan_of(layers), layers)) for layers in (first, last)]
    assert merged[0] == merged[1]


@pytest.mark.parametrize("name", ["busybox-1", "debian-12"])
def test_real_images(registry: Registry, tmp_path: Path, root: str, name: str) -> None:
    tool = str(REPOSITORY / "tools" / "image")
    path = subprocess.run([tool, "path", name], check=True, capture_output=True, text=True)
    cached = path.stdout.strip()
    if name == "debian-12" and not os.path.exists(cached):
        pytest.skip("debian-12 takes minutes to make and is not there: tools/image build")
    subprocess.run([tool, "build", name], check=True)
    reference = f"{registry.host}/{name}:1"
    copy("--dest-tls-verify=false", f"oci:{cached}", f"docker://{reference}")
    copy(f"oci:{cached}", f"oci:{tmp_path}/layout:it")
    image = pull(reference, Store(root + "/store")).image
    theirs, their_groups = umoci_tree(f"{tmp_path}/layout", tmp_path / "umoci")
    with mounted(image.squashfs, tmp_path / "mnt") as mount:
        ours, our_groups = read_tree(mount)
    assert differences(ours, theirs) == {}
    assert our_groups == their_groups
    assert len(ours) > 50
