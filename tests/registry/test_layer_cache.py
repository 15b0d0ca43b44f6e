"""The layer cache with a real registry: what is asked for once, and what never stays."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from fault_proxy import FaultProxy, stall
from fetching import auth_for, fetch, names_below
from registries import Cli, Registry
from tars import Member, make_layer

from hpcwrap.image.access import Access
from hpcwrap.image.layers import prepare_cache
from hpcwrap.image.pull import pull
from hpcwrap.image.puller import PullOptions
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.store import Store
from hpcwrap.image.transport import Download, resolve

pytestmark = pytest.mark.registry

BASE, FIRST, SECOND = (
    make_layer([Member(name, content=os.urandom(50_000))]) for name in ("base", "first", "second")
)


@pytest.fixture(name="access")
def make_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.chdir(tmp_path)
    prepare_cache(str(tmp_path / "blobs"), None)
    return Access(cache=str(tmp_path / "blobs"), cache_limit=10_000_000)


@pytest.fixture(name="proxy")
def make_proxy(registry: Registry) -> Iterator[FaultProxy]:
    proxy = FaultProxy(registry.port)
    yield proxy
    proxy.stop()


def kept(access: Access) -> List[str]:
    return [f"sha256:{name}" for name in names_below(Path(access.cache))]


def downloads(proxy: FaultProxy, layer: str) -> int:
    """How often a layer was asked for: the registry's own log comes a moment late."""
    return proxy.count(f"GET /v2/cache/blobs/{layer}")


def test_a_second_tag_downloads_what_is_new(push: Any, proxy: FaultProxy, access: Access) -> None:
    one = push("cache:one", [BASE, FIRST])
    two = push("cache:two", [BASE, SECOND])
    fetch(f"{proxy.host}/cache:one", access, "one")
    assert set(one.layers) < set(kept(access))
    assert downloads(proxy, two.layers[0]) == 1
    fetch(f"{proxy.host}/cache:two", access, "two")
    assert [downloads(proxy, layer) for layer in two.layers] == [1, 1]
    assert {*one.layers, *two.layers} < set(kept(access))


def test_a_blob_that_was_damaged_is_downloaded_again(
    push: Any, proxy: FaultProxy, access: Access
) -> None:
    pushed = push("cache:damaged", [BASE, SECOND])
    fetch(f"{proxy.host}/cache:damaged", access, "one")
    path = Path(access.cache, pushed.layers[0][7:])
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    fetch(f"{proxy.host}/cache:damaged", access, "two")
    assert [downloads(proxy, layer) for layer in pushed.layers] == [2, 1]
    assert path.read_bytes() == content


def test_nothing_of_a_private_image_stays(push: Any, proxy: FaultProxy, access: Access) -> None:
    push("cache:public", [BASE])
    fetch(f"{proxy.host}/cache:public", access, "public")
    before = kept(access)
    pushed = push("cache:private", [BASE, FIRST])
    private = access._replace(auth=auth_for(proxy.host, "ann", "x"), private=True)
    fetch(f"{proxy.host}/cache:private", private, "private")
    assert kept(access) == before
    assert [downloads(proxy, layer) for layer in pushed.layers] == [1, 1]


def test_what_is_whole_is_kept_while_the_rest_comes(
    push: Any, proxy: FaultProxy, access: Access
) -> None:
    pushed = push("half:1", [BASE, FIRST, SECOND])
    proxy.fault(f"GET .*{pushed.layers[1]}", stall(100))
    reference = parse_reference(f"{proxy.host}/half:1")
    download = Download(reference, resolve(reference, access), "download", access)
    while len(kept(access)) < 2:
        assert not download.ended()
        time.sleep(0.005)
    assert pushed.layers[1] not in kept(access)
    assert set(kept(access)) <= {pushed.layers[0], pushed.layers[2]}
    download._skopeo._run.child.kill()


def test_the_cache_keeps_its_size(push: Any, access: Access) -> None:
    pushed = push("small:1", [BASE, FIRST, SECOND])
    fetch(pushed.reference, access._replace(cache_limit=120_000))
    sizes = [os.path.getsize(os.path.join(access.cache, name[7:])) for name in kept(access)]
    assert 50_000 < sum(sizes) <= 120_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has an image user")
def test_pulls_share_layers_as_the_image_user(push: Any, proxy: FaultProxy, root: str) -> None:
    store = Store(root + "/store")
    options = PullOptions(access=Access(cache_limit=10_000_000))
    layers: List[str] = []
    for name, layer in (("one", FIRST), ("two", SECOND)):
        layers += push(f"cache:{name}", [BASE, layer]).layers
        pull(f"{proxy.host}/cache:{name}", store, options)
    assert [downloads(proxy, layer) for layer in layers] == [1, 1, 1, 1]
    names = os.listdir(store.blobs_directory)
    assert set(layers) < {f"sha256:{name}" for name in names}
    for name in names:
        assert os.stat(os.path.join(store.blobs_directory, name)).st_uid == 65534


def test_a_killed_pull_leaves_its_layers_to_the_next(
    push: Any, proxy: FaultProxy, cli: Cli
) -> None:
    pushed = push("cache:killed", [BASE, FIRST])
    proxy.fault(f"GET .*{pushed.layers[1]}", stall(100))
    child = cli.start("pull", "--quiet", f"{proxy.host}/cache:killed")
    cached = Path(cli.store, "blobs", pushed.layers[0][7:])
    while not cached.exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    child.kill()
    child.communicate()
    proxy.faults.clear()
    again = cli("pull", "--quiet", f"{proxy.host}/cache:killed")
    assert again.returncode == 0, again.stderr
    assert downloads(proxy, pushed.layers[0]) == 1
