"""What the site says: policy.json and signatures, registries.conf, and kinds of images."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from fault_proxy import FaultProxy, refuse
from fetching import fetch
from registries import Layout, Pushed, Registry, free_port
from tars import Member, make_layer
from token_server import make_certificate

from hpcwrap.errors import SiteError, UserError
from hpcwrap.image import skopeo
from hpcwrap.image.access import Access

pytestmark = pytest.mark.registry

LAYERS = [make_layer([Member("a", content=b"a" * 5000)])]
OTHER = [make_layer([Member("b", content=b"b" * 5000)])]
ASK = "ask for a signed image, or the administrator for another policy"


@pytest.fixture(autouse=True)
def in_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers work in a directory of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(skopeo, "FIRST_DELAY", 0.01)


class Site:
    """A directory with policy.json, registries.d beside it, signatures and keys."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.policy = str(self.directory / "policy.json")
        self.signatures = f"file://{directory}/signatures"
        self.gpg = {**os.environ, "GNUPGHOME": directory, "XDG_RUNTIME_DIR": directory}
        (self.directory / "registries.d").mkdir()
        place = {"lookaside": self.signatures, "lookaside-staging": self.signatures}
        beside = self.directory / "registries.d/default.yaml"
        beside.write_text(json.dumps({"default-docker": place}))

    def make_key(self, name: str) -> str:
        """A key without a passphrase; returns the file of its public part."""
        public = f"{self.directory}/{name}.gpg"
        self.run_gpg("--passphrase", "", "--quick-gen-key", name, "ed25519")
        self.run_gpg("--export", "--output", public, name)
        return public

    def run_gpg(self, *words: str) -> str:
        argv = ["gpg", "--batch", "--quiet", *words]
        done = subprocess.run(argv, env=self.gpg, check=True, capture_output=True, text=True)
        return done.stdout

    def sign(self, reference: str, name: str) -> None:
        source = f"docker://{reference}"
        # The colons of gpg's doc/DETAILS: field 10 of a line fpr is the fingerprint.
        keys = self.run_gpg("--with-colons", "--list-keys", name).splitlines()
        finger = next(line.split(":")[9] for line in keys if line.startswith("fpr"))
        argv = ["skopeo", "--registries.d", f"{self.directory}/registries.d", "copy", "--quiet"]
        argv += ["--src-tls-verify=false", "--dest-tls-verify=false", "--sign-by", finger]
        subprocess.run([*argv, source, source], env=self.gpg, check=True)

    def demand(self, *requirements: Dict[str, Any], **scopes: Any) -> Access:
        policy = {"default": [*requirements], "transports": {"docker": scopes}}
        Path(self.policy).write_text(json.dumps(policy))
        return Access(policy=self.policy)


@pytest.fixture(scope="module", name="site")
def make_site() -> Iterator[Site]:
    # gpg's agent listens in its home, whose path must not be longer than a socket's (unix(7)).
    directory = tempfile.mkdtemp(prefix="hpcwrap-test-")
    yield Site(directory)
    subprocess.run(["gpgconf", "--homedir", directory, "--kill", "all"], check=True)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module", name="key")
def make_key(site: Site) -> str:
    return site.make_key("site")


@pytest.fixture(scope="module", name="signed")
def make_signed(
    registry: Registry, site: Site, key: str, tmp_path_factory: pytest.TempPathFactory
) -> Pushed:
    layout = Layout(tmp_path_factory.mktemp("policy") / "layout")
    pushed = layout.push_layers(registry, "policy/signed:1", LAYERS, {})
    site.sign(pushed.reference, "site")
    return pushed


def refused(text: str, access: Access, kind: Any = UserError) -> str:
    """What is told when an image is refused."""
    with pytest.raises(kind) as caught:
        fetch(text, access)
    assert type(caught.value) is kind
    sentence: str = caught.value.sentence()
    start = f"cannot pull the image {text}: "
    assert sentence.startswith(start)
    return sentence[len(start) :]


def signed_by(key: str) -> Dict[str, str]:
    return {"type": "signedBy", "keyType": "GPGKeys", "keyPath": key}


def test_a_signed_image_is_pulled(site: Site, signed: Pushed, key: str) -> None:
    fetch(signed.reference, site.demand(signed_by(key)))


def test_an_image_without_a_signature_is_refused(site: Site, push: Any, key: str) -> None:
    pushed = push("policy/unsigned:1", OTHER)
    assert refused(pushed.reference, site.demand(signed_by(key))) == (
        f"the site's policy.json wants a signature, and it has none ({ASK})"
    )


def test_another_key_than_the_sites_is_refused(site: Site, signed: Pushed) -> None:
    other = site.make_key("other")
    said = refused(signed.reference, site.demand(signed_by(other)))
    assert said == f"the site's policy.json wants another signature than it has ({ASK})"


def test_another_images_signature_is_refused(
    site: Site, signed: Pushed, push: Any, key: str
) -> None:
    pushed = push("policy/forged:1", OTHER)
    (found,) = (site.directory / "signatures/policy").glob("signed@*")
    shutil.copytree(found, found.parent / f"forged@{pushed.digest.replace(':', '=')}")
    said = refused(pushed.reference, site.demand(signed_by(key)))
    assert said == f"the site's policy.json wants another signature than it has ({ASK})"


def test_what_a_policy_rejects(site: Site, push: Any, registry: Registry) -> None:
    pushed = push("policy/any:1", OTHER)
    said = refused(pushed.reference, site.demand({"type": "reject"}))
    assert said == f"the site's policy.json does not allow it ({ASK})"
    scope = {f"{registry.host}/policy": [{"type": "insecureAcceptAnything"}]}
    fetch(pushed.reference, site.demand({"type": "reject"}, **scope), directory="again")


@pytest.mark.parametrize("content", [None, "{", '{"default": []}'])
def test_a_policy_that_is_broken_fails_closed(
    site: Site, push: Any, tmp_path: Path, content: Any
) -> None:
    pushed = push("policy/any:1", OTHER)
    path = tmp_path / "policy.json"
    if content:
        path.write_text(content)
    said = refused(pushed.reference, Access(policy=str(path)), SiteError)
    assert said.startswith("the site's policy.json cannot be used: ")
    assert said.endswith(" (see the setting policy)")


def conf(tmp_path: Path, *tables: str) -> Access:
    path = tmp_path / "registries.conf"
    path.write_text("\n".join(tables))
    return Access(registries_conf=str(path), timeout=5.0, retries=1)


def registry_table(prefix: str, location: str, *more: str) -> str:
    lines = [f'prefix = "{prefix}"', f'location = "{location}"', "insecure = true", *more]
    return "\n".join(["[[registry]]", *lines])


def mirror(location: str) -> str:
    return f'[[registry.mirror]]\nlocation = "{location}"\ninsecure = true'


@pytest.fixture(name="origin")
def make_origin(registry: Registry) -> Iterator[FaultProxy]:
    proxy = FaultProxy(registry.port)
    yield proxy
    proxy.stop()


@pytest.fixture(name="near")
def make_near(registry: Registry) -> Iterator[FaultProxy]:
    proxy = FaultProxy(registry.port)
    yield proxy
    proxy.stop()


def test_a_mirror_is_asked_first(
    push: Any, origin: FaultProxy, near: FaultProxy, tmp_path: Path
) -> None:
    push("mirror/tool:1", LAYERS)
    table = registry_table("hub.example", origin.host, mirror(near.host))
    fetch("hub.example/mirror/tool:1", conf(tmp_path, table))
    assert near.count("/blobs/") == 2
    assert origin.requests == []


@pytest.mark.parametrize("how", ["down", "broken", "without-it"])
def test_the_origin_is_asked_where_a_mirror_fails(
    push: Any, origin: FaultProxy, near: FaultProxy, tmp_path: Path, how: str
) -> None:
    push("mirror/tool:1", LAYERS)
    host = f"127.0.0.1:{free_port()}" if how == "down" else near.host
    near.fault("manifests", refuse(404 if how == "without-it" else 503))
    table = registry_table("hub.example", origin.host, mirror(host))
    fetch("hub.example/mirror/tool:1", conf(tmp_path, table))
    assert origin.count("/blobs/") == 2
    assert near.count("/blobs/") == 0


def test_references_without_a_registry_follow_registries_conf(
    push: Any, origin: FaultProxy, tmp_path: Path
) -> None:
    push("library/tool:1", LAYERS)
    fetch("tool:1", conf(tmp_path, registry_table("docker.io", origin.host)))
    assert origin.count("/v2/library/tool/blobs/") == 2


def test_a_registry_that_is_blocked(push: Any, registry: Registry, tmp_path: Path) -> None:
    push("blocked:1", LAYERS)
    table = registry_table(registry.host, registry.host, "blocked = true")
    assert refused(f"{registry.host}/blocked:1", conf(tmp_path, table)) == (
        "the site's registries.conf blocks its registry (ask the administrator)"
    )


def test_a_registries_conf_that_is_broken(tmp_path: Path) -> None:
    said = refused("hub.example/a:1", conf(tmp_path, "[[registry"), SiteError)
    assert said.startswith("the site's registries.conf cannot be used: ")
    assert said.endswith(" (see the setting registries_conf)")


def test_plain_http_has_to_be_allowed(push: Any, registry: Registry, tmp_path: Path) -> None:
    push("plain:1", LAYERS)
    table = registry_table("hub.example", registry.host)
    fetch("hub.example/plain:1", conf(tmp_path, table))
    strict = conf(tmp_path, table.replace("insecure = true", "insecure = false"))
    assert refused("hub.example/plain:1", strict, SiteError) == (
        "the registry has no TLS (registries.conf may say insecure = true)"
    )


@pytest.fixture(name="tls")
def make_tls(tmp_path: Path) -> Iterator[str]:
    """Somebody with a certificate that nobody trusts."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    make_certificate(key, certificate, "/CN=hub.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_certificate_has_to_be_trusted(tls: str, tmp_path: Path) -> None:
    table = registry_table("hub.example", tls).replace("insecure = true", "insecure = false")
    said = refused("hub.example/a:1", conf(tmp_path, table), SiteError)
    assert said.startswith("the registry's certificate is not trusted: ")
