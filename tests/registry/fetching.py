"""Downloads without the rest of a pull: helpers of the registries' tests."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Dict, List

from hpcwrap.image.access import ANONYMOUS, Access
from hpcwrap.image.digest import digest_of
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.transport import Download, resolve

STEADY = Access(timeout=20.0, retries=2)
IMPATIENT = STEADY._replace(timeout=0.8)
"""For what is silent: on a busy machine all else may be that for as long."""


def fetch(text: str, access: Access = ANONYMOUS, directory: str = "download") -> Download:
    """Resolve and download an image into a directory, and look at every byte."""
    reference = parse_reference(text)
    download = Download(reference, resolve(reference, access), directory, access)
    while not download.ended():
        time.sleep(0.005)
    check(download)
    return download


def check(download: Download) -> None:
    for blob in [download.resolved.manifest.config, *download.resolved.manifest.layers]:
        content = Path(download.blob_path(blob)).read_bytes()
        assert digest_of(content) == blob.digest
        assert len(content) == blob.size
    assert download.unfinished() == []


def auth_for(host: str, name: str, password: str) -> bytes:
    """A containers-auth.json with one entry."""
    return json.dumps({"auths": {host: encoded(name, password)}}).encode()


def encoded(name: str, password: str) -> Dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def names_below(directory: Path) -> List[str]:
    return sorted(str(x.relative_to(directory)) for x in directory.rglob("*") if x.is_file())
