"""Real namespaces and mounts, each module of tests in a mount namespace of its own."""

import os
import shutil
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence

import pytest
from containers import ALICE, ENTER, Container, Make, make_squashfs

from hpcwrap import paths, record
from hpcwrap.config import Settings
from hpcwrap.container import build, environ, namespaces, syscalls
from hpcwrap.container.addition import Addition
from hpcwrap.container.operations import Commands
from hpcwrap.container.plan import make_plan
from hpcwrap.environment import Environment, Mount
from hpcwrap.job import Job, User

APPLETS = (
    "sh",
    "id",
    "ls",
    "cat",
    "mount",
    "umount",
    "env",
    "pwd",
    "touch",
    "sleep",
    "stat",
    "true",
)


@pytest.fixture(scope="module", autouse=True)
def own_mounts() -> Iterator[None]:
    """Keep the tests' mounts from the machine's, and from other tests."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    yield
    syscalls.setns(home, syscalls.CLONE_NEWNS)


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of a small image: Debian's static busybox, and a few traps."""
    root = tmp_path_factory.mktemp("image") / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nalice:x:7:7::/:/bin/sh\n")
    (root / "etc" / "resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (root / "data").symlink_to("../../../../../../outside")
    (root / "loop").symlink_to("loop")
    shutil.copy("/bin/busybox", root / "bin" / "setuid")
    (root / "bin" / "setuid").chmod(0o4755)
    return root


@pytest.fixture(scope="session")
def squashfs(image_root: Path) -> Path:
    """The image as the store would have it."""
    return make_squashfs(image_root)


@pytest.fixture(name="hostile")
def make_hostile_image(image_root: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """Make images that are as the usual one, but for one path that is a link."""

    def hostile(path: str, leads_to: str) -> Path:
        root = tmp_path / "hostile"
        shutil.copytree(image_root, root, symlinks=True)
        place = root / path
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.symlink_to(leads_to)
        return make_squashfs(root)

    return hostile


@pytest.fixture(name="make")
def make_container(squashfs: Path, tmp_path: Path) -> Iterator[Make]:
    """Build containers; all are released afterwards, as the epilog would."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    jobs = str(tmp_path / "run" / "jobs")
    namespaces.ensure_jobs_directory(jobs)
    places: List[paths.JobPaths] = []
    # The checkout may be where only root can go.
    program = Path(shutil.copy(ENTER, tmp_path))

    def make(
        mounts: Sequence[Mount] = (),
        *,
        user_namespace: bool,
        user: User = ALICE,
        workdir: str = "/",
        settings: Optional[Settings] = None,
        variables: Sequence[str] = (),
        image: Optional[Path] = None,
        commands: Optional[Commands] = None,
        additions: Sequence[Addition] = (),
    ) -> Container:
        environment = Environment(
            "test", "test", "", tuple(mounts), (), None, (), (), "environments.d/test.yaml"
        )
        job = Job(f"{len(places) + 1}", "test", user, workdir, "node")
        place = paths.JobPaths(job.id, jobs)
        plan = make_plan(
            str(image or squashfs),
            environment,
            settings or Settings(mount_home=False),
            job,
            commands=commands,
            additions=additions,
            user_namespace=user_namespace,
        )
        os.makedirs(place.directory, mode=0o711)
        places.append(place)
        build.build(plan, place)
        entry = environ.make_entry("test@sha256:0", plan, place, variables, environment)
        record.publish(place.entry, entry, 0o640, group=user.gid)
        return Container(place, plan, program)

    yield make
    for place in places:
        build.release(place)
        record.remove(place)
    syscalls.umount2(jobs, 0)
