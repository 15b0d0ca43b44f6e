"""Tags that move, and registries that are down, under jobs that start."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest
from registries import REPOSITORY, Cli, Layout, Registry
from tars import Member, make_layer

from hpcwrap import run
from hpcwrap.config import Settings, load_config
from hpcwrap.environment import Environment
from hpcwrap.errors import SiteError, UserError
from hpcwrap.image.refresh import PATIENCE, is_due, start_refresh
from hpcwrap.image.store import Link, Store
from hpcwrap.job import Job, User
from hpcwrap.submit import Choice
from hpcwrap.supply import Supplied, is_shared, spread, supply

pytestmark = pytest.mark.registry

ANYBODY = User("nobody", 65534, 65534, (65534,), "/nonexistent")
JOB = Job("7", "slurm", ANYBODY, "/", "n1")
HOUR = 3600.0


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(1500):
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(name="own")
def make_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that a test may stop."""
    registry = Registry(tmp_path_factory.mktemp("own"))
    yield registry
    registry.stop()


def restart(registry: Registry) -> None:
    with registry.log.open("a") as log:
        words = ["docker-registry", "serve", str(registry.root / "settings.yml")]
        registry.process = subprocess.Popen(words, stdout=log, stderr=log)
    registry._wait()


class Site:
    """A registry with a tag, an environment of it, and jobs that start."""

    def __init__(self, cli: Cli, registry: Registry, layout: Layout) -> None:
        self.cli = cli
        self.registry = registry
        self.layout = layout
        self.reference = f"{registry.host}/tool:1"
        self.store = Store(cli.store)
        (cli.environments / "tool.yaml").write_text(f"image: {self.reference}\n")
        self.configure("missing")

    def configure(self, pull: str) -> None:
        Path(self.cli.settings).write_text(
            f"store: {self.cli.store}\npull: {pull}\nregistry_retries: 0\n"
        )

    def push(self, version: str) -> str:
        layer = make_layer([Member("version", content=version.encode())])
        return self.layout.push_layers(self.registry, "tool:1", [layer], {}).digest

    def start(self, pin: str = "") -> Supplied:
        loaded = load_config(self.cli.settings)
        choice = Choice(loaded.settings, loaded.environment("tool"), "--container", pin)
        return supply(choice, JOB, self.cli.settings)

    @property
    def link(self) -> Link:
        link = self.store.find_link(self.reference)
        assert link is not None
        return link


@pytest.fixture(name="site")
def make_site(cli: Cli, own: Registry, layout: Layout) -> Site:
    return Site(cli, own, layout)


# ---- when ----


@pytest.mark.parametrize(
    ("pull", "age", "due"),
    [
        ("always", 1, True),
        ("hourly", HOUR - 9, False),
        ("hourly", HOUR + 9, True),
        ("daily", 24 * HOUR + 9, True),
        ("weekly", 25 * HOUR, False),
        ("missing", 1e9, False),
        ("never", 1e9, False),
    ],
)
def test_age_that_is_due(pull: str, age: float, due: bool) -> None:
    link = Link("a:1", "sha256:" + "0" * 64, 1e9)
    assert is_due(link, pull, 1e9 + age) is due
    assert not is_due(link._replace(failed_at=1e9 + age - PATIENCE / 2), pull, 1e9 + age)
    assert not is_due(link._replace(reference=f"a@{link.digest}"), pull, 1e9 + age)


# ---- jobs ----


def test_a_job_runs_what_is_there_and_the_next_one_what_is_new(site: Site) -> None:
    older = site.push("1")
    assert "download" in site.start().milliseconds
    site.configure("always")
    newer = site.push("2")
    started = site.start()
    assert (started.image.digest, started.milliseconds) == (older, {})
    assert eventually(lambda: site.link.digest == newer)
    assert site.start().image.digest == newer


def test_without_a_policy_nothing_is_looked_up_again(site: Site) -> None:
    older = site.push("1")
    site.start()
    site.push("2")
    site.start()
    assert not [name for name in os.listdir(site.store.locks_directory) if "refresh" in name]
    assert site.link.digest == older


def test_a_registry_that_is_down_stops_no_job(site: Site) -> None:
    digest = site.push("1")
    site.start()
    site.configure("always")
    site.registry.stop()
    assert site.start().image.digest == digest
    assert eventually(lambda: site.link.failed != "")
    started = site.start()
    assert started.image.digest == digest
    assert "the registry cannot be reached" in started.warning
    assert "the image is as it was at 20" in started.warning
    assert started.warning in site.cli("images").stderr
    restart(site.registry)
    done = site.cli("image", "refresh", "tool")
    assert (done.returncode, done.stdout) == (
        0,
        f"{site.reference} is still {digest[7:19]}\n",
    )
    assert site.start().warning == ""


def test_a_pinned_job_runs_its_digest_with_the_registry_down(site: Site) -> None:
    older = site.push("1")
    site.start()
    site.push("2")
    assert site.cli("image", "refresh", "--all", "--quiet").stdout == ""
    site.registry.stop()
    assert site.start(pin=older).image.digest == older


def test_a_pinned_image_that_nobody_has_comes_by_its_digest(site: Site) -> None:
    older = site.push("1")
    newer = site.push("2")
    assert site.start().image.digest == newer
    assert site.start(pin=older).image.digest == older
    site.registry.stop()
    assert site.start(pin=older).image.digest == older, "the store remembers what it proved"
    assert site.link.digest == newer


def test_a_pin_on_another_repositorys_image_is_nothing(site: Site) -> None:
    """It is in the store, but this environment's repository does not have it."""
    site.push("1")
    site.start()
    layer = make_layer([Member("secret")])
    other = site.layout.push_layers(site.registry, "other:1", [layer], {})
    assert site.cli("pull", "--quiet", other.reference).returncode == 0
    with pytest.raises(UserError, match="the registry does not have it"):
        site.start(pin=other.digest)


def test_a_job_holds_its_image(site: Site) -> None:
    digest = site.push("1")
    started = site.start()
    assert started.stores == (site.cli.store,)
    assert site.cli("rm", site.reference).returncode == 2
    started.give_back(JOB)
    assert site.cli("rm", site.reference).returncode == 0
    assert site.store.find_digest(digest) is None


def test_never_means_what_it_says(site: Site) -> None:
    digest = site.push("1")
    site.configure("never")
    with pytest.raises(UserError) as raised:
        site.start()
    assert "an administrator has to run `hpcwrap pull tool`" in raised.value.sentence()
    with pytest.raises(UserError) as raised:
        site.start(pin=digest)
    assert f"`hpcwrap pull {site.registry.host}/tool@{digest}`" in raised.value.sentence()


def test_a_store_that_drops_everything_at_once_is_told(site: Site) -> None:
    site.push("1")
    site.start()
    os.rename(site.store.document_path(site.link.digest), site.cli.store + "/gone")
    site.registry.stop()
    with pytest.raises(SiteError, match="cannot be reached"):
        site.start()


# ---- the command ----


def test_refresh_tells_what_moved(site: Site) -> None:
    older, reference = site.push("1"), site.reference
    assert site.cli("image", "refresh", "tool").stdout == f"{reference} is now {older[7:19]}\n"
    newer = site.push("2")
    done = site.cli("image", "refresh", "--all", "--json")
    assert done.returncode == 0
    assert f'"now": "{newer}"' in done.stdout
    assert site.link.history == (newer, older)
    site.registry.stop()
    done = site.cli("image", "refresh", "--all", "--quiet")
    assert done.returncode == 3
    assert done.stdout.startswith(f"{reference} stays as it is: cannot pull the image {reference}")
    assert site.cli("image", "refresh").returncode == 2


def test_refresh_of_all_looks_at_no_files_but_those_of_environments(site: Site, root: str) -> None:
    for name in ("mine", "by-hand"):
        Path(root, f"{name}.tar").write_bytes(make_layer([Member(f"bin/{name}")]))
        assert site.cli("pull", "--quiet", f"tar:{root}/{name}.tar").returncode == 0
        Path(root, f"{name}.tar").unlink()
    (site.cli.environments / "mine.yaml").write_text(f"image: tar:{root}/mine.tar\n")
    done = site.cli("image", "refresh", "--all")
    assert done.returncode == 3
    assert done.stdout.startswith(f"tar:{root}/mine.tar stays as it is: cannot read ")
    assert done.stdout.count("\n") == 1
    gone = site.cli("image", "refresh", f"tar:{root}/other.tar")
    assert gone.stdout.startswith(f"cannot read tar:{root}/other.tar: ")


# ---- in the background ----


def test_a_thousand_jobs_start_one_refresh(site: Site) -> None:
    site.push("1")
    site.start()
    path = f"{site.store.locks_directory}/refresh-a"
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        other = site.link._replace(reference="a")
        assert not start_refresh(site.store, other, site.cli.settings, "nobody")
    assert start_refresh(site.store, site.link, site.cli.settings, "nobody")
    started = [start_refresh(site.store, site.link, site.cli.settings, "nobody") for _ in range(30)]
    assert not any(started[:10])


def test_a_store_that_cannot_be_written_is_refreshed_by_others(tmp_path: Path) -> None:
    link = Link("a:1", "sha256:" + "0" * 64, 1e9)
    assert not start_refresh(Store(str(tmp_path / "none")), link, "/none", "nobody")


def test_what_is_detached_outlives_the_prolog_and_holds_nothing_of_it(tmp_path: Path) -> None:
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from hpcwrap import run\n"
        "keep = os.open('/dev/null', os.O_RDONLY | os.O_CLOEXEC); os.open('/dev/zero', 0)\n"
        "run.detach(['/bin/sh', '-c', sys.argv[2]], keep)\n"
    )
    told = tmp_path / "pid"
    command = f"ls -l /proc/$$/fd >{tmp_path}/fds; echo $$ >{told}.new; mv {told}.new {told}"
    words = [sys.executable, "-c", script, str(REPOSITORY), f"{command}; exec sleep 60"]
    # slurmd reads to the end of the pipe, and kills the group of a prolog that takes too long.
    prolog = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    assert prolog.communicate(timeout=60)[0] == b""
    assert eventually(told.exists)
    with pytest.raises(ProcessLookupError):
        os.killpg(prolog.pid, signal.SIGKILL)
    detached = int(told.read_text())
    try:
        assert Path(f"/proc/{detached}/stat").read_text().rpartition(")")[2].split()[1] == "1"
        assert run.start_time(detached)
        assert os.getsid(detached) not in (os.getsid(0), prolog.pid)
        assert "zero" not in (tmp_path / "fds").read_text()
    finally:
        os.kill(detached, signal.SIGKILL)


# ---- several nodes ----


def test_pulls_are_spread_only_where_each_node_has_its_own_store(tmp_path: Path) -> None:
    many = JOB._replace(nodes=1000)
    waits = [spread(many, 10, "/") for _ in range(50)]
    local = not is_shared("/")
    assert all(0 <= wait <= 10 for wait in waits)
    assert (len(set(waits)) > 1) == local
    assert spread(JOB, 10, "/") == 0.0
    assert spread(JOB._replace(nodes=2), 10, "/") <= 0.5
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 1 0:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 0:2 / /shared rw shared:1 - nfs4 server:/x rw\n"
        "3 1 0:3 / /shared/scratch rw - xfs /dev/sdb rw\n"
    )
    assert not is_shared("/var/lib", str(mounts))
    assert is_shared("/shared/store", str(mounts))
    assert not is_shared("/shared/scratch/store", str(mounts))
    assert not is_shared("/sharedness", str(mounts))


def test_an_image_of_the_users_is_pulled_with_the_users_name(site: Site) -> None:
    site.push("1")
    own = Environment(site.reference, site.reference, "", (), (), None, (), (), "--container")
    settings = Settings(store=site.cli.store, user_images=True)
    started = supply(Choice(settings, own, "--container", "", True), JOB, site.cli.settings)
    assert started.image.uids == (), "what the registry gives to everybody is everyone's"
