"""A real registry on loopback, images for it, and the command line: helpers of these tests."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import pytest

REPOSITORY = Path(__file__).parents[2]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
"""How gzip and zstd streams begin."""
PUSH = ("--quiet", "--dest-tls-verify=false")
ALL = ("--all", "--preserve-digests")
SETTINGS = """\
version: 0.1
log: {{level: info, formatter: json}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: "127.0.0.1:{port}"}}
{more}
"""


class Registry:
    """A registry that runs, and what it was asked for; `data` is another's that it serves, too."""

    def __init__(self, root: Path, more: str = "", data: Optional[Path] = None) -> None:
        self.root = root
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.log = root / "log"
        settings = root / "settings.yml"
        settings.write_text(SETTINGS.format(data=data or root / "data", port=self.port, more=more))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(settings)], stdout=log, stderr=log
            )
        self._wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def downloads(self, digest: str) -> int:
        """How often a blob was fetched."""
        lines = self.log.read_text().splitlines()
        return sum(f"blobs/{digest}" in line and '"GET"' in line for line in lines)

    def _wait(self) -> None:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        pytest.fail(f"the registry does not answer: {self.log.read_text()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pushed(NamedTuple):
    """An image in the registry."""

    reference: str
    digest: str
    layers: List[str]


class Layout:
    """An OCI image layout, written by hand so that it may be broken (image-layout.md)."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        self.root = root
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, content: bytes, media_type: str) -> Dict[str, Any]:
        stem = hashlib.sha256(content).hexdigest()
        (self.blobs / stem).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{stem}", "size": len(content)}

    def document(self, document: Dict[str, Any], media_type: str) -> Dict[str, Any]:
        return self.blob(json.dumps(document).encode(), media_type)

    def image(self, blobs: Sequence[bytes], config: Dict[str, Any]) -> Dict[str, Any]:
        layers = [self.blob(blob, LAYER) for blob in blobs]
        about = {"architecture": "amd64", "os": "linux", "config": config}
        about["rootfs"] = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers}
        manifest["config"] = self.document(about, CONFIG)
        return self.document(manifest, MANIFEST)

    def tag(self, entry: Dict[str, Any], name: str) -> None:
        """Give an image a name within the layout."""
        named = {**entry, "annotations": {"org.opencontainers.image.ref.name": name}}
        index = {"schemaVersion": 2, "manifests": [named]}
        (self.root / "index.json").write_text(json.dumps(index))

    def push(self, entry: Dict[str, Any], reference: str, *options: str) -> None:
        """Push an image as it is, or as options of `skopeo copy` would have it."""
        index = {"schemaVersion": 2, "manifests": [entry]}
        (self.root / "index.json").write_text(json.dumps(index))
        subprocess.run(
            [
                "skopeo",
                "copy",
                *(options or ALL),
                *PUSH,
                f"oci:{self.root}",
                f"docker://{reference}",
            ],
            # Else skopeo asks for passwords in /run/containers, which may be root's alone.
            env={**os.environ, "XDG_RUNTIME_DIR": str(self.root)},
            check=True,
        )

    def put(self, entry: Dict[str, Any], reference: str) -> None:
        """Put a manifest beside blobs that are there, as skopeo would not (distribution-spec)."""
        host, _, name = reference.partition("/")
        repository, _, tag = name.rpartition(":")
        registry = http.client.HTTPConnection(host)
        body = (self.blobs / entry["digest"][7:]).read_bytes()
        path = f"/v2/{repository}/manifests/{tag}"
        registry.request("PUT", path, body, {"Content-Type": entry["mediaType"]})
        answer = registry.getresponse()
        assert answer.status == 201, answer.read()

    def push_layers(
        self, registry: Registry, name: str, layers: Sequence[bytes], config: Dict[str, Any]
    ) -> Pushed:
        """Push layers (tar streams, or blobs that are compressed already) under a name."""
        blobs = [x if x.startswith(COMPRESSED) else gzip.compress(x, 1, mtime=0) for x in layers]
        entry = self.image(blobs, config)
        reference = f"{registry.host}/{name}"
        self.push(entry, reference)
        digests = [f"sha256:{hashlib.sha256(blob).hexdigest()}" for blob in blobs]
        return Pushed(reference, entry["digest"], digests)


class Cli:
    """The command line with settings of a test's own."""

    def __init__(self, root: str) -> None:
        self.store = root + "/store"
        self.settings = root + "/hpcwrap.yaml"
        Path(self.settings).write_text(f"store: {self.store}\n")
        self.environments = Path(root, "environments.d")
        self.environments.mkdir()

    def argv(self, *words: str) -> List[str]:
        return [sys.executable, "-m", "hpcwrap", "--config", self.settings, *words]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), cwd=REPOSITORY, capture_output=True, text=True, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.argv(*words), cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True
        )
