"""Registries and networks that fail: what is tried again, what is not, and what is told."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from fault_proxy import (
    Answer,
    Behave,
    FaultProxy,
    Handler,
    cut,
    exchange,
    flip,
    late,
    lengthen,
    overstate,
    refuse,
    shorten,
    stall,
    trickle,
)
from fetching import IMPATIENT, STEADY, fetch, names_below
from registries import Layout, Pushed, Registry
from tars import Member, make_layer

from hpcwrap.errors import HpcwrapError, SiteError, UserError
from hpcwrap.image import skopeo
from hpcwrap.image.access import Access
from hpcwrap.image.pull import pull
from hpcwrap.image.puller import PullOptions
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.store import Store
from hpcwrap.image.transport import Download, resolve

pytestmark = pytest.mark.registry

LAYERS = [make_layer([Member(name, content=os.urandom(200_000))]) for name in "abc"]
LATER = "it may work later; tell the administrator if it stays like this"
LOG_IN = "is the name right? log in with podman login or docker login"
CHANGED = "somebody changed it, there or on its way"


@pytest.fixture(autouse=True)
def in_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers work in a directory of their own; what is tried again is, soon."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(skopeo, "FIRST_DELAY", 0.01)


@pytest.fixture(name="proxy")
def make_proxy(registry: Registry) -> Iterator[FaultProxy]:
    proxy = FaultProxy(registry.port)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module", name="pushed")
def make_pushed(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    layout = Layout(tmp_path_factory.mktemp("faults") / "layout")
    return layout.push_layers(registry, "faults:1", LAYERS, {})


@pytest.fixture(name="text")
def make_text(pushed: Pushed, proxy: FaultProxy) -> str:
    """The image's reference, through the proxy."""
    return f"{proxy.host}/faults:1"


def blob(pushed: Pushed, number: int = -1) -> str:
    """A pattern for the requests for a layer."""
    return f"GET .*/blobs/{pushed.layers[number]}"


def gets(proxy: FaultProxy, pushed: Pushed) -> List[int]:
    """How often each layer was asked for."""
    return [proxy.count(f"GET /v2/faults/blobs/{layer}") for layer in pushed.layers]


@pytest.mark.parametrize("where", ["manifests", "blobs"])
@pytest.mark.parametrize(
    ("behave", "access"),
    [
        (refuse(500), STEADY),
        (refuse(502), STEADY),
        (refuse(503), STEADY),
        (refuse(429, retry_after="0"), STEADY),
        (cut(10), STEADY),
        (cut(0), STEADY),
        (cut(10, reset=True), STEADY),
        (overstate, STEADY),
        (stall(10), IMPATIENT),
        (stall(0), IMPATIENT),
        (late(3.0), IMPATIENT),
    ],
    ids=["500", "502", "503", "429", "cut", "cut-0", "reset", "long", "stall", "stall-0", "late"],
)
def test_what_passes_is_tried_again(
    text: str, proxy: FaultProxy, pushed: Pushed, where: str, behave: Behave, access: Access
) -> None:
    pattern = blob(pushed) if where == "blobs" else "GET .*/manifests/"
    proxy.fault(pattern, behave, times=1)
    fetch(text, access)
    assert proxy.faults[0].left == 0
    if where == "blobs":
        assert gets(proxy, pushed) == [1, 1, 2]


def test_what_is_whole_is_not_downloaded_again(
    text: str, proxy: FaultProxy, pushed: Pushed
) -> None:
    proxy.fault(blob(pushed, 1), cut(100), times=2)
    proxy.fault(blob(pushed, 2), late(0.1))
    fetch(text, STEADY)
    assert gets(proxy, pushed) == [1, 3, 1]


def test_progress_makes_patient(text: str, proxy: FaultProxy, pushed: Pushed) -> None:
    # Four failures in all are more than two retries, but never three without a blob between them.
    proxy.fault(blob(pushed, 1), cut(100), times=2)
    proxy.fault(blob(pushed, 2), cut(100), times=4)
    fetch(text, STEADY)
    assert gets(proxy, pushed) == [1, 3, 5]


@pytest.mark.parametrize(
    ("pattern", "behave", "kind", "meaning"),
    [
        ("manifests", refuse(503), SiteError, ("the registry does not work, tried 3 times", LATER)),
        ("blobs", refuse(502), SiteError, ("the registry does not work, tried 3 times", LATER)),
        (
            "blobs",
            refuse(429, retry_after="0"),
            SiteError,
            (
                "the registry takes no more requests from this site for now, tried 3 times",
                "a mirror or a password helps: see the settings registries_conf and auth_file",
            ),
        ),
        (
            "blobs",
            cut(100),
            SiteError,
            ("the connection to the registry broke off, tried 3 times", LATER),
        ),
        (
            "blobs",
            stall(100),
            SiteError,
            ("the registry sends nothing any more, tried 3 times", LATER),
        ),
        (
            "manifests",
            late(30.0),
            SiteError,
            ("the registry sends nothing any more, tried 3 times", LATER),
        ),
    ],
    ids=["503", "502", "429", "cut", "stall", "late"],
)
def test_what_does_not_pass_ends_with_a_sentence(
    text: str, proxy: FaultProxy, pattern: str, behave: Behave, kind: Any, meaning: Any
) -> None:
    proxy.fault(f"GET .*/{pattern}/", behave)
    with pytest.raises(HpcwrapError) as caught:
        fetch(text, IMPATIENT)
    assert type(caught.value) is kind
    assert caught.value.sentence() == f"cannot pull the image {text}: {meaning[0]} ({meaning[1]})"


@pytest.mark.parametrize(
    ("pattern", "behave", "kind", "meaning"),
    [
        (
            "blobs",
            refuse(403),
            UserError,
            f"the registry does not give it to us without a password ({LOG_IN})",
        ),
        (
            "manifests",
            refuse(404),
            UserError,
            "the registry does not have it (check repository and tag)",
        ),
        (
            "blobs",
            flip,
            SiteError,
            f"a digest did not match what the registry sent ({CHANGED})",
        ),
    ],
    ids=["403", "404", "flip"],
)
def test_what_is_an_answer_is_not_asked_again(
    text: str, proxy: FaultProxy, pattern: str, behave: Behave, kind: Any, meaning: str
) -> None:
    proxy.fault(f"GET .*/{pattern}/", behave, times=1)
    with pytest.raises(kind) as caught:
        fetch(text, STEADY)
    assert isinstance(caught.value, kind)
    assert caught.value.sentence() == f"cannot pull the image {text}: {meaning}"
    assert proxy.faults[0].left == 0
    # A copy asks for the manifest by its digest, and for each blob, once.
    asked = [each for each in proxy.requests if re.search("blobs/|manifests/", each)]
    assert sorted(asked) == sorted(set(asked))


@pytest.mark.parametrize(
    "behave", [flip, shorten, lengthen, exchange(b"")], ids=["flip", "short", "long", "empty"]
)
@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
def test_lies_are_seen(
    text: str, proxy: FaultProxy, pushed: Pushed, behave: Behave, which: str
) -> None:
    at = {
        "layer": blob(pushed),
        "config": f"GET .*/blobs/(?!{'|'.join(pushed.layers)})",
        "manifest": f"GET .*/manifests/{pushed.digest}",
    }
    proxy.fault(at[which], behave)
    with pytest.raises(SiteError) as caught:
        fetch(text, STEADY)
    assert proxy.faults[0].left < 1 << 30
    assert caught.value.sentence() == (
        f"cannot pull the image {text}: a digest did not match what the registry sent ({CHANGED})"
    )
    kept = names_below(Path("download")) if which == "layer" else []
    assert f"blobs/sha256/{pushed.layers[-1][7:]}" not in kept


def test_what_the_disk_has_no_room_for_is_not_begun(text: str, proxy: FaultProxy) -> None:
    reference = parse_reference(text)
    resolved = resolve(reference, STEADY)
    large = resolved.manifest.layers[0]._replace(size=1 << 60)
    manifest = resolved.manifest._replace(layers=(large,))
    with pytest.raises(SiteError, match="the store is full"):
        Download(reference, resolved._replace(manifest=manifest), "download", STEADY)
    assert proxy.count("/blobs/") == 0


def test_a_blob_without_end_is_stopped_early(text: str, proxy: FaultProxy, pushed: Pushed) -> None:
    most, piece = 256 << 20, 1 << 20
    sent = []

    def behave(handler: Handler, answer: Answer) -> None:
        handler.send(answer, most)
        with suppress(OSError):
            for _ in range(most // piece):
                handler.wfile.write(bytes(piece))
                sent.append(piece)
        handler.close()

    proxy.fault(blob(pushed), behave)
    with pytest.raises(SiteError, match="a digest did not match"):
        fetch(text, STEADY)
    proxy.stop()
    assert sum(sent) < most / 2


def test_another_image_than_its_digest(text: str, proxy: FaultProxy, push: Any) -> None:
    first = push("faults:other", LAYERS[:1])
    proxy.fault(f"GET .*/manifests/{first.digest}", exchange(b'{"schemaVersion": 2}'))
    with pytest.raises(SiteError, match="a digest did not match"):
        fetch(f"{proxy.host}/faults@{first.digest}", STEADY)


@pytest.mark.parametrize("header", [{"retry_after": "1"}, {}], ids=["asked", "by-itself"])
def test_a_registry_that_asks_to_wait_is_waited_for(
    text: str, proxy: FaultProxy, pushed: Pushed, header: Any
) -> None:
    proxy.fault(blob(pushed), refuse(429, **header), times=1)
    download = fetch(text, IMPATIENT)
    assert download._skopeo.failures == 0
    assert gets(proxy, pushed) == [1, 1, 2]


def test_a_slow_disk_is_not_a_silent_registry(text: str, proxy: FaultProxy, pushed: Pushed) -> None:
    proxy.fault(blob(pushed), stall(100))
    reference = parse_reference(text)
    download = Download(reference, resolve(reference), "download", IMPATIENT._replace(timeout=0.1))
    errand = download._skopeo.errand
    asked: List[str] = []

    def is_syncing() -> bool:
        asked.append("busy?")
        return len(asked) < 9

    download._skopeo.errand = errand._replace(busy=is_syncing)
    while len(asked) < 8:
        assert not download.ended()
    assert download._skopeo.failures == 0
    while download._skopeo.failures == 0:
        assert not download.ended()
    assert not errand.busy()
    whole = download.resolved.manifest.layers[0].size
    Path("download/oci-put-blob1").write_bytes(b"x" * whole)
    assert errand.busy()


def test_slow_is_not_silent(text: str, proxy: FaultProxy, pushed: Pushed) -> None:
    proxy.fault(blob(pushed), trickle(pieces=8, seconds=0.2))
    download = fetch(text, IMPATIENT)
    assert download._skopeo.failures == 0


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    waits = [skopeo.delay(failures) for failures in range(1, 9) for _ in range(50)]
    firsts, lasts = waits[:50], waits[-50:]
    assert 0.25 <= min(firsts) < max(firsts) <= 0.75
    assert min(lasts) > max(firsts)
    assert max(lasts) <= skopeo.MAX_DELAY
    assert len(set(firsts)) > 10


def test_a_pull_that_is_cut_makes_the_same_image(push: Any, proxy: FaultProxy, root: str) -> None:
    layers = [make_layer([Member(name, content=os.urandom(4_000_000))]) for name in "ab"]
    pushed = push("faults:large", layers)
    proxy.fault(blob(pushed, 0), cut(3_000_000), times=1)
    proxy.fault(blob(pushed, 1), stall(2_000_000), times=1)
    options = PullOptions(access=IMPATIENT)
    image = pull(f"{proxy.host}/faults:large", Store(root + "/cut"), options).image
    assert [fault.left for fault in proxy.faults] == [0, 0]
    whole = pull(pushed.reference, Store(root + "/whole")).image
    assert Path(image.squashfs).read_bytes() == Path(whole.squashfs).read_bytes()
