"""Kill -9 at seeded moments: the next command completes, and nothing half-made is ever seen."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import killing
import pytest
from fronts import Front
from killing import Moment, Work, command
from registries import Registry
from tars import Member, make_layer

from hpcwrap.image import cache, lease
from hpcwrap.image.collect import Rules, collect
from hpcwrap.image.store import Image, Store

pytestmark = [
    pytest.mark.registry,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has an image user, and its store"),
]

SEED = int(os.environ.get("HPCWRAP_KILL_SEED", "20"))
KILLS = int(os.environ.get("HPCWRAP_KILLS", "50"))
"""Of all operations together; more of them, and other seeds, by hand."""

RATE = 2_000_000
LAYERS, LAYER = 3, 300_000
SETTINGS = "store: {store}\npull_timeout: 60\nregistry_timeout: 20\n"


class Scene:
    """A registry behind a slow front, and a store as it is before each kill."""

    def __init__(self, root: Path, push: Callable[..., Any], host: str) -> None:
        self.root = root
        self.push = push
        self.host = host
        self.store = Store(str(root / "store"))
        self.template = root / "template"
        self.shapes: Dict[str, str] = {}
        self.settings = str(root / "site" / "hpcwrap.yaml")
        (root / "site" / "environments.d").mkdir(parents=True)
        self.use_settings()

    def use_settings(self, more: str = "", **environments: str) -> None:
        """Write the site's settings, and environments with their images."""
        path = Path(self.settings)
        path.write_text(SETTINGS.format(store=self.store.root) + more)
        for name, image in environments.items():
            (path.parent / "environments.d" / f"{name}.yaml").write_text(f"image: {image}\n")

    def make(self, name: str, number: int) -> str:
        """Push an image of its own content, note what its squashfs is to be; its reference."""
        source = random.Random(f"{name} {number}")
        layers = [
            make_layer([Member(f"data/{number}-{layer}", content=source.randbytes(LAYER))])
            for layer in range(LAYERS)
        ]
        pushed = self.push(name, layers)
        other = Store(str(self.root / "other"))
        settings = self.root / "other.yaml"
        settings.write_text(SETTINGS.format(store=other.root))
        self.need("--config", str(settings), "pull", "--quiet", pushed.reference)
        content = Path(other.squashfs_path(pushed.digest)).read_bytes()
        self.shapes[pushed.digest] = hashlib.sha256(content).hexdigest()
        return f"{self.host}/{name}"

    def need(self, *words: str) -> None:
        """Run a command that must work."""
        ended = killing.run(command(*words), self.root / "log")
        assert ended.code == 0, ended.output

    def pull(self, *references: str) -> None:
        """Have images in the store."""
        for reference in references:
            self.need("--config", self.settings, "pull", "--quiet", reference)

    def image(self, reference: str) -> Image:
        """An image that has to be in the store."""
        image = self.store.find(reference)
        assert image, reference
        return image

    def use(self, *references: str) -> None:
        """Note the use of images, an hour after the other, the last one just now."""
        now = time.time()
        for hours, reference in enumerate(reversed(references)):
            path = self.store.document_path(self.image(reference).digest)
            os.utime(path, (now - hours * 3600, now - hours * 3600))

    def hpcwrap(self, *words: str) -> Work:
        """A command on the store."""
        return command("--config", self.settings, *words)

    def keep_template(self) -> None:
        """Take the store as it is now for what is there before each kill."""
        copy(self.store.root, str(self.template))

    def reset(self) -> None:
        """Put the store back to what it was."""
        shutil.rmtree(self.store.root, ignore_errors=True)
        copy(str(self.template), self.store.root)


def copy(source: str, target: str) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


@pytest.fixture(name="scene")
def make_scene(root: str, push: Any, registry: Registry) -> Iterator[Scene]:
    front = Front(Path(root), registry, RATE)
    yield Scene(Path(root), push, front.host)
    front.stop()


class Operation(NamedTuple):
    """What is killed; `always` are references that a reader must find at any time, and `wrong`
    says what is not as it has to be when the command has come to its end.
    """

    name: str
    work: Work
    always: Tuple[str, ...]
    wrong: Callable[[], List[str]]


def test_kill_a_pull(scene: Scene) -> None:
    kept, new = scene.make("kept:1", 1), scene.make("new:1", 2)
    scene.pull(kept)
    work = scene.hpcwrap("pull", "--quiet", new)
    kill_often(scene, Operation("pull", work, (kept,), lambda: killing.missing(scene.store, [new])))


def test_kill_an_eviction(scene: Scene) -> None:
    names = [scene.make(f"evict:{number}", number) for number in range(3)]
    scene.pull(*names)
    scene.use(*names)
    digests = [scene.image(name).digest for name in names]
    size = scene.image(names[2]).size

    def work() -> int:
        cache.evict(scene.store, size)
        return 0

    def wrong() -> List[str]:
        return differs(scene.store, digests[2:])

    kill_often(scene, Operation("eviction", work, (names[2],), wrong))


def test_kill_a_gc(scene: Scene) -> None:
    names = [scene.make(f"gc:{number}", number) for number in range(4)]
    scene.pull(*names)
    digests = [scene.image(name).digest for name in names]
    lease.hold(scene.store, digests[1], "n1", "7")
    litter(scene.store)
    scene.use_settings("gc_days: 0\nlayer_cache: 2m\n", kept=names[0])

    def wrong() -> List[str]:
        return differs(scene.store, digests[:2])

    kill_often(scene, Operation("gc", scene.hpcwrap("image", "gc"), (names[0], names[1]), wrong))


def litter(store: Store) -> None:
    """What killed pulls leave: a directory in tmp, a file under its first name, a lock."""
    os.makedirs(f"{store.tmp_directory}/pull-dead/download")
    for path in (f"{store.tmp_directory}/pull-dead/download/x", f"{store.locks_directory}/image-0"):
        Path(path).touch()
    for directory in (store.images_directory, store.refs_directory):
        Path(directory, ".half.json.abcdefgh").write_text("{")


def test_kill_a_refresh(scene: Scene) -> None:
    moving = scene.make("moving:1", 1)
    scene.pull(moving)
    scene.make("moving:1", 2)
    (new,) = set(scene.shapes) - set(scene.store.digests())

    def wrong() -> List[str]:
        return [] if scene.image(moving).digest == new else ["the old image"]

    work = scene.hpcwrap("image", "refresh", moving)
    kill_often(scene, Operation("refresh", work, (moving,), wrong))


def test_kill_a_copy_into_a_nodes_cache(scene: Scene) -> None:
    names = [scene.make(f"copy:{number}", number) for number in range(3)]
    scene.pull(*names)
    images = [scene.image(name) for name in names]
    site, scene.store = scene.store, Store(str(scene.root / "cache"))
    limit = sum(image.size for image in images[:2]) + 10

    def bring(image: Image) -> int:
        return int(cache.bring(site, scene.store, image, limit).squashfs == image.squashfs)

    for hours, image in ((2, images[0]), (1, images[1])):
        assert killing.run(lambda image=image: bring(image), scene.root / "log").code == 0
        last = time.time() - hours * 3600
        os.utime(scene.store.document_path(image.digest), (last, last))

    def wrong() -> List[str]:
        return differs(scene.store, [image.digest for image in images[1:]])

    kill_often(scene, Operation("copy", lambda: bring(images[2]), (), wrong))


def collected(store: Store) -> Store:
    """The store, after a gc that removes no image."""
    for _ in collect(store, Rules(days=1000, layers=1 << 30)):
        pass
    return store


def differs(store: Store, digests: List[str]) -> List[str]:
    """What is more or less in the store than these images."""
    return sorted(set(store.digests()) ^ set(digests))


def kill_often(scene: Scene, operation: Operation) -> None:
    """Kill the operation at a fifth of all moments, each time from the same store."""
    scene.keep_template()
    whole = killing.run(operation.work, scene.root / "log")
    assert whole.code == 0, whole.output
    assert [*operation.wrong(), *killing.left_over(scene.store)] == []
    killed = 0
    for number in range(KILLS // 5):
        moment = choose(random.Random(f"{SEED} {operation.name} {number}"), number, whole)
        scene.reset()
        killed += kill_once(scene, operation, moment)
    assert killed > 0, "no kill came in time"


def choose(source: random.Random, number: int, whole: killing.Ended) -> Moment:
    """Half of the moments are the leader's; the others its helpers' and the whole group's."""
    victim = ("leader", "helper", "leader", "group")[number % 4]
    changes = whole.changes["leader" if victim == "group" else victim]
    by_time = Moment(victim, seconds=source.uniform(0.001, whole.seconds))
    if victim == "group":
        return by_time
    if victim == "leader" and whole.changes["helper"] and source.random() < 0.5:
        return by_time
    if not changes:
        return Moment("leader", event=source.randint(1, whole.changes["leader"]))
    return Moment(victim, event=source.randint(1, changes))


def kill_once(scene: Scene, operation: Operation, moment: Moment) -> bool:
    """Kill it at the moment, then let it run to its end; True when it was still running."""
    reader = killing.Reader(scene.store, scene.shapes, operation.always)
    killed = killing.run(operation.work, scene.root / "log", moment)
    seen = [*killing.broken(scene.store, scene.shapes)]
    again = killing.run(operation.work, scene.root / "log")
    seen += reader.stop()
    where = f"{operation.name}, seed {SEED}, {moment}: {killed}\nthen {again}"
    assert seen == [], where
    assert "Traceback" not in killed.output + again.output, where
    assert again.code == 0, where
    assert [*operation.wrong(), *killing.left_over(scene.store)] == [], where
    assert list(killing.locks_of_nothing(collected(scene.store))) == [], where
    running = lambda: killing.processes_of(killed.leader, scene.store.root)  # noqa: E731
    assert killing.eventually_none(running) == [], where
    assert killing.eventually_none(lambda: killing.loops(scene.store.root)) == [], where
    assert killing.mounts(str(scene.root)) == [], where
    return killed.code != 0
