"""Manifests and indexes."""

from __future__ import annotations

import json
from typing import Any, Dict

import pytest

from hpcwrap.errors import UserError
from hpcwrap.image.manifest import (
    MAX_MANIFEST,
    choose_instance,
    is_index,
    parse_document,
    parse_manifest,
)

DIGEST = "sha256:" + "ab" * 32
BLOB = {"digest": DIGEST, "size": 5, "mediaType": "text"}


def instance(architecture: str, last: str, **more: str) -> Dict[str, Any]:
    platform = {"os": "linux", "architecture": architecture, **more}
    return {"digest": "sha256:" + last * 64, "size": 1, "platform": platform}


def test_a_manifest_names_its_layers_in_order() -> None:
    document = {"schemaVersion": 2, "config": BLOB, "layers": [BLOB, {**BLOB, "size": 6}]}
    manifest = parse_manifest(parse_document(json.dumps(document).encode()))
    assert [layer.size for layer in manifest.layers] == [5, 6]
    assert not is_index(document)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "no JSON"),
        (b"[]", "another version"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "another version"),
        (b" " * (MAX_MANIFEST + 1), "bytes, more than"),
        (b'{"schemaVersion": 2}', "without layers"),
        (b'{"schemaVersion": 2, "layers": []}', "its configuration is missing"),
        (
            json.dumps({"schemaVersion": 2, "config": BLOB, "layers": [{"size": 1}]}).encode(),
            "layer 1 has no sha256 digest",
        ),
        (
            json.dumps(
                {"schemaVersion": 2, "config": {**BLOB, "digest": "sha256:../../etc"}, "layers": []}
            ).encode(),
            "no sha256 digest",
        ),
    ],
)
def test_manifests_that_make_no_sense(content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_manifest(parse_document(content))


def test_the_instance_for_a_machine() -> None:
    index = {
        "manifests": [
            {"digest": DIGEST, "platform": {"os": "windows", "architecture": "amd64"}},
            instance("amd64", "1"),
            instance("arm64", "2"),
            instance("arm", "3", variant="v6"),
            instance("arm", "4", variant="v7"),
            "rubbish",
        ]
    }
    assert is_index(index)
    for machine, last in (("x86_64", "1"), ("aarch64", "2"), ("armv7l", "4")):
        assert choose_instance(index, machine) == "sha256:" + last * 64
    with pytest.raises(UserError, match="not for this machine") as caught:
        choose_instance(index, "s390x")
    assert "linux/arm64" in caught.value.hint


def test_attestations_are_no_image() -> None:
    attestation = {"digest": DIGEST, "platform": {"os": "unknown", "architecture": "unknown"}}
    index = {"manifests": [attestation, instance("arm64", "2")]}
    assert choose_instance(index, "aarch64") == "sha256:" + "2" * 64
    with pytest.raises(UserError) as caught:
        choose_instance(index, "x86_64")
    assert caught.value.hint == "it is there for linux/arm64"


def test_an_index_in_an_index_is_the_last_choice() -> None:
    nested = {"digest": DIGEST, "mediaType": "application/vnd.oci.image.index.v1+json"}
    index = {"manifests": [nested, instance("arm64", "2")]}
    assert choose_instance(index, "aarch64") == "sha256:" + "2" * 64
    assert choose_instance(index, "x86_64") == DIGEST
