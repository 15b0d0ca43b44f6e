"""A real registry on loopback, images for it, and the command line: helpers of these tests."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import pytest

REPOSITORY = Path(__file__).parents[2]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PUSH = ("--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false")
SETTINGS = """\
version: 0.1
log: {{level: info, formatter: json}}
storage: {{filesystem: {{rootdirectory: {root}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
{more}
"""


class Registry:
    """A registry that runs, and what it was asked for."""

    def __init__(self, root: Path, more: str = "") -> None:
        self.root = root
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.log = root / "log"
        settings = root / "settings.yml"
        settings.write_text(SETTINGS.format(root=root, port=self.port, more=more))
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

    def push(self, entry: Dict[str, Any], reference: str) -> None:
        index = {"schemaVersion": 2, "manifests": [entry]}
        (self.root / "index.json").write_text(json.dumps(index))
        subprocess.run(
            ["skopeo", "copy", *PUSH, f"oci:{self.root}", f"docker://{reference}"],
            # Else skopeo asks for passwords in /run/containers, which may be root's alone.
            env={**os.environ, "XDG_RUNTIME_DIR": str(self.root)},
            check=True,
        )


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
