"""Kinds of images that registries hold: indexes, Docker's manifests, layers of every media type."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from fetching import fetch
from registries import INDEX, MANIFEST, Layout, Registry
from tars import Member, make_layer

from hpcwrap.errors import UserError

pytestmark = pytest.mark.registry

RAW = make_layer([Member("a", content=b"a" * 5000)])
OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs"
SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


@pytest.fixture(autouse=True)
def in_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers work in a directory of their own."""
    monkeypatch.chdir(tmp_path)


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=content, check=True, capture_output=True).stdout


def manifest_of(layout: Layout, layers: List[Dict[str, Any]], kind: str) -> Dict[str, Any]:
    """A manifest of OCI's or Docker's with these layers."""
    diff = f"sha256:{hashlib.sha256(RAW).hexdigest()}"
    about: Dict[str, Any] = {"architecture": "amd64", "os": "linux", "config": {"Env": ["A=1"]}}
    about["rootfs"] = {"type": "layers", "diff_ids": [diff for _ in layers]}
    about["history"] = [{"created_by": "test"} for _ in layers]
    config = "application/vnd.oci.image.config.v1+json"
    if kind == SCHEMA2:
        config = "application/vnd.docker.container.image.v1+json"
        about["docker_version"] = "20.10"  # OCI's configuration has no such field
    document = {"schemaVersion": 2, "mediaType": kind, "layers": layers}
    document["config"] = layout.document(about, config)
    return layout.document(document, kind)


@pytest.mark.parametrize(
    ("name", "kind", "media_type", "blob"),
    [
        ("gzip", MANIFEST, f"{OCI}+gzip", gzip.compress(RAW)),
        ("plain", MANIFEST, OCI, RAW),
        ("zstd", MANIFEST, f"{OCI}+zstd", zstd(RAW)),
        ("mislabelled", MANIFEST, f"{OCI}+gzip", zstd(RAW)),
        ("docker", SCHEMA2, f"{DOCKER}.diff.tar.gzip", gzip.compress(RAW)),
        ("docker-plain", SCHEMA2, f"{DOCKER}.diff.tar", RAW),
    ],
    ids=["gzip", "plain", "zstd", "mislabelled", "docker", "docker-plain"],
)
def test_layers_come_as_they_are(
    layout: Layout, registry: Registry, name: str, kind: str, media_type: str, blob: bytes
) -> None:
    entry = manifest_of(layout, [layout.blob(blob, media_type)], kind)
    layout.push(entry, f"{registry.host}/kinds:{name}")
    download = fetch(f"{registry.host}/kinds:{name}")
    assert download.resolved.digest == entry["digest"]
    (layer,) = download.resolved.manifest.layers
    assert Path(download.blob_path(layer)).read_bytes() == blob
    config = json.loads(Path(download.blob_path(download.resolved.manifest.config)).read_bytes())
    assert config["config"]["Env"] == ["A=1"]
    assert ("docker_version" in config) is (kind == SCHEMA2)


def instance(entry: Dict[str, Any], architecture: str) -> Dict[str, Any]:
    return {**entry, "platform": {"os": "linux", "architecture": architecture}}


@pytest.fixture(name="index")
def make_index(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Tuple[Dict[str, Any], str]:
    """Instances for an index, the digest of this machine's among them."""
    monkeypatch.setattr("hpcwrap.image.manifest.ARCHITECTURES", {os.uname().machine: ("amd64", "")})
    layers = [layout.blob(gzip.compress(content), f"{OCI}+gzip") for content in (RAW, RAW * 2)]
    ours, other = (manifest_of(layout, [layer], MANIFEST) for layer in layers)
    attestation = {**other, "platform": {"os": "unknown", "architecture": "unknown"}}
    entries = [attestation, instance(other, "s390x"), instance(ours, "amd64")]
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, ours["digest"]


@pytest.mark.parametrize("kind", [INDEX, LIST])
def test_an_index_has_attestations_and_other_machines(
    layout: Layout, registry: Registry, index: Tuple[Dict[str, Any], str], kind: str
) -> None:
    document, digest = index
    layout.push(layout.document({**document, "mediaType": kind}, kind), f"{registry.host}/many:1")
    assert fetch(f"{registry.host}/many:1").resolved.digest == digest


def test_an_index_in_an_index(
    layout: Layout, registry: Registry, index: Tuple[Dict[str, Any], str]
) -> None:
    document, digest = index
    outer = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [layout.document(document, INDEX)],
    }
    layout.push(outer["manifests"][0], f"{registry.host}/nested:inner")
    layout.put(layout.document(outer, INDEX), f"{registry.host}/nested:1")
    assert fetch(f"{registry.host}/nested:1").resolved.digest == digest


def test_indexes_without_end(layout: Layout, registry: Registry) -> None:
    entry = manifest_of(layout, [layout.blob(gzip.compress(RAW), f"{OCI}+gzip")], MANIFEST)
    layout.push(entry, f"{registry.host}/deep:1")
    for _ in range(5):
        outer = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        entry = layout.document(outer, INDEX)
        layout.put(entry, f"{registry.host}/deep:1")
    with pytest.raises(UserError, match="has a manifest without layers"):
        fetch(f"{registry.host}/deep:1")


@pytest.mark.parametrize(
    "kind",
    [f"{DOCKER}.foreign.diff.tar.gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar"],
)
def test_a_layer_that_lies_elsewhere_is_not_fetched(
    layout: Layout, tmp_path: Path, kind: str
) -> None:
    lenient = Registry(tmp_path, "validation: {manifests: {urls: {allow: [.*]}}}")
    try:
        usual = f"{DOCKER}.diff.tar.gzip" if DOCKER in kind else f"{OCI}+gzip"
        here = layout.blob(gzip.compress(RAW), usual)
        layer = layout.blob(gzip.compress(RAW * 2), kind)
        elsewhere = {**layer, "urls": [f"http://{lenient.host}/layer"]}
        text = f"{lenient.host}/foreign:1"
        manifest = SCHEMA2 if DOCKER in kind else MANIFEST
        layout.push(manifest_of(layout, [here], manifest), text)
        layout.put(manifest_of(layout, [elsewhere], manifest), text)
        with pytest.raises(UserError) as caught:
            fetch(text)
        assert "GET /layer" not in lenient.log.read_text()
    finally:
        lenient.stop()
    assert caught.value.sentence() == (
        f"cannot use the image {text}: its layer {layer['digest']} is not in the"
        " registry but elsewhere (push it again with all its layers)"
    )


def test_dockers_old_manifests_are_refused(
    layout: Layout, registry: Registry, tmp_path: Path
) -> None:
    old = Registry(tmp_path, "compatibility: {schema1: {enabled: true}}")
    try:
        layer = layout.blob(gzip.compress(RAW), f"{DOCKER}.diff.tar.gzip")
        text = f"{old.host}/old:1"
        layout.push(manifest_of(layout, [layer], SCHEMA2), text, "--format", "v2s1")
        with pytest.raises(UserError) as caught:
            fetch(text)
    finally:
        old.stop()
    assert caught.value.sentence() == (
        f"cannot use the image {text}: it has a manifest of another version than 2"
        " (push it again with a current tool)"
    )
