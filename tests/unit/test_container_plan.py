"""What a container is made of: the pure parts of the container room."""

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcwrap import machine
from hpcwrap.config import Settings
from hpcwrap.container import accounts, environ, mounts
from hpcwrap.container.addition import Addition
from hpcwrap.container.operations import Bind, Commands, Tmpfs
from hpcwrap.container.plan import make_plan
from hpcwrap.environment import Environment, Machine, Mount, Rlimit, Variable
from hpcwrap.errors import SiteError, UserError
from hpcwrap.job import Job, User
from hpcwrap.paths import JobPaths

ALICE = User("alice", 2001, 2001, (2001, 3001), "/home/alice", "/bin/bash")
JOB = Job("7", "slurm", ALICE, "/scratch/run", "n1")
PLAIN = Environment("e", "image", "", (), (), None, (), (), "e.yaml")


def bind(source: str, target: str = "", *options: str) -> Mount:
    return Mount(source, target or source, "bind", options, "e.yaml:3")


def lines(environment: Environment = PLAIN, **more: object) -> List[str]:
    plan = make_plan("/store/x.sqsh", environment, Settings(), JOB, **more)  # type: ignore[arg-type]
    return plan.describe()


def test_a_plan_tells_what_a_container_is_made_of() -> None:
    assert lines() == [
        "for alice (uid 2001), joined by host identity",
        "tmpfs of 16m for mount points",
        "image /store/x.sqsh on a loop device (ro,nosuid,nodev)",
        "root: overlay of image and tmpfs (nosuid,nodev)",
        "copy of the host's /etc/resolv.conf",
        "copy of the host's /etc/hosts",
        "copy of the host's /etc/localtime",
        "passwd and group with alice and its groups",
        "bind /dev (rbind,nosuid; hpcwrap)",
        "bind /home/alice (rbind,nosuid,nodev,nofail; mount_home)",
        "bind /proc (rbind,nosuid; hpcwrap)",
        "bind /scratch/run (rbind,nosuid,nodev,nofail; mount_workdir)",
        "bind /sys (rbind,nosuid; hpcwrap)",
        "bind /tmp (rbind,nosuid,nodev; hpcwrap)",
        "bind /var/tmp (rbind,nosuid,nodev,nofail; hpcwrap)",
        "directories that are the image's alone, without the overlay (ro,nosuid,nodev)",
        "root read-only",
        "pivot_root, the host's root away",
    ]


def test_commands_of_the_host_keep_its_root() -> None:
    found = lines(commands=Commands("/usr/bin", ("srun",), "/p"))
    assert found[-4:] == [
        "the host's commands from /usr/bin: srun",
        "directories that are the image's alone, without the overlay (ro,nosuid,nodev)",
        "root read-only",
        "pivot_root, the host's root to /.host (nosuid, devices in its /dev only)",
    ]


def test_variables_in_sources_are_the_jobs() -> None:
    environment = PLAIN._replace(mounts=(bind("/lustre/$USER/$UID/$JOB", "/scratch", "ro"),))
    wanted = "bind /lustre/alice/2001/7 on /scratch (rbind,ro,nosuid,nodev; e.yaml:3)"
    assert wanted in lines(environment)


def test_an_unknown_variable_names_the_line() -> None:
    with pytest.raises(SiteError, match=r"e.yaml:3: cannot expand \$NOBODY"):
        mounts.make([bind("/x/$NOBODY")], variables={"USER": "alice"})


@pytest.mark.parametrize(
    "path", ["/", "/usr/lib", "/etc", "/proc/1", "/dev", "/opt", "//etc/", "x"]
)
def test_the_image_is_not_hidden(path: str) -> None:
    assert not mounts.is_data(path)


@pytest.mark.parametrize(
    "path", ["/home", "/scratch/a", "/opt/data", "/var/lib/x", "/root", "/tmp"]
)
def test_data_is_brought_in(path: str) -> None:
    assert mounts.is_data(path)


@pytest.mark.parametrize("path", ["/home/../etc", "/.."])
def test_a_path_with_dots_is_no_data(path: str) -> None:
    assert not mounts.is_data(path)


def targets(*operations: mounts.MountOperation) -> List[str]:
    return [operation.target for operation in mounts.arrange(operations)]


def test_parents_are_mounted_before_what_is_below_them() -> None:
    found = targets(Bind("/a", "/x/y/z"), Tmpfs("/x", ()), Bind("/b", "/x/y"))
    assert found == ["/x", "/x/y", "/x/y/z"]


def test_the_last_mount_on_a_target_stays() -> None:
    found = mounts.arrange([Bind("/a", "/x"), Bind("/b", "/x/")])
    assert [operation.target for operation in found] == ["/x/"]


def test_what_a_mount_above_brings_along_is_not_mounted_again() -> None:
    assert targets(Bind("/home", "/home"), Bind("/home/alice", "/home/alice")) == ["/home"]
    assert len(targets(Bind("/home", "/home"), Bind("/home/a", "/home/a", ("ro",)))) == 2
    assert len(targets(Bind("/h", "/home"), Bind("/home/a", "/home/a"))) == 2
    assert len(targets(Bind("/home", "/home", recursive=False), Bind("/home/a", "/home/a"))) == 2


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda p: "/" + "/".join(p))


@given(st.lists(st.builds(Bind, PATHS, PATHS)))
def test_arranging_keeps_the_order_and_loses_no_target(binds: List[Bind]) -> None:
    arranged = targets(*binds)
    assert len(set(arranged)) == len(arranged)
    for number, target in enumerate(arranged):
        assert not any(later == target[: len(later)] for later in arranged[number + 1 :])
    for wanted in binds:
        above = [wanted.target[: len(each)] == each for each in arranged]
        assert any(above), "each target is there, or what brings it"


def test_accounts_of_the_job_displace_the_images() -> None:
    image = (
        b"root:x:0:0::/root:/bin/sh\nalice:x:9:9::/:/bin/sh\nother:x:2001:1::/:/bin/sh\nbroken\n"
    )
    text = accounts.merge(image, accounts.passwd(ALICE)).decode().splitlines()
    assert text == ["alice:x:2001:2001:alice:/home/alice:/bin/bash", "root:x:0:0::/root:/bin/sh"]


def test_an_image_without_accounts_gets_the_least() -> None:
    text = accounts.merge(b"", accounts.passwd(ALICE)).decode()
    assert [line.split(":")[0] for line in text.splitlines()] == ["alice", "root", "nobody"]


def test_the_entry_has_the_rule_of_variables_in_its_order() -> None:
    environment = PLAIN._replace(
        workdir="/work",
        variables=(
            Variable("set", "A", "b"),
            Variable("unset", "C", ""),
            Variable("prepend", "P", "/q"),
        ),
    )
    plan = make_plan("/x", environment, Settings(), JOB, user_namespace=True)
    place = JobPaths("7")
    entry = environ.make_entry("e@sha256:0", plan, place, ["PATH=/i", "K=a=b", "="], environment)
    jobs = "/run/hpcwrap/jobs/7/ns"
    assert entry.split(b"\0") == [
        *(b"hpcwrap-entry-1", b"container", b"e@sha256:0"),
        *(b"user-namespace", f"{jobs}/user".encode(), b"mount-namespace", f"{jobs}/mnt".encode()),
        *(b"workdir", b"/work", b"default", b"K", b"a=b", b"path", b"/i"),
        *(b"set", b"A", b"b", b"unset", b"C", b"prepend", b"P", b"/q", b"end", b""),
    ]


def test_commands_outside_the_images_path_are_appended_to_it() -> None:
    plan = make_plan(
        "/x", PLAIN, Settings(), JOB, commands=Commands("/opt/slurm/bin", ("srun",), "/p")
    )
    assert environ.command_instructions(plan, "/bin") == ["append", "PATH", "/opt/slurm/bin"]
    assert environ.command_instructions(plan, "/bin:/opt/slurm/bin") == []


def test_a_nul_in_an_images_variable_is_refused() -> None:
    with pytest.raises(UserError, match="NUL"):
        environ.encode(["a\0b"])


def test_variables_are_described_one_a_line() -> None:
    environment = PLAIN._replace(
        variables=(Variable("unset", "C", ""), Variable("set", "A", "b c"))
    )
    addition = Addition(variables=(Variable("set", "A", "gpu"),))
    plan = make_plan("/x", environment, Settings(), JOB, additions=[addition])
    found = environ.describe_variables(["PATH=/i", "K=v"], plan, environment)
    assert found == ["default K v", "path /i", "set A gpu", "unset C", "set A b c"]


def test_shared_memory_is_the_hosts_unless_a_size_is_given() -> None:
    assert set(machine.additions(PLAIN, Settings())) == {Addition()}
    small = PLAIN._replace(machine=Machine(shm_size="1g"))
    words = lines(small, additions=machine.additions(small, Settings()))
    dev = next(number for number, text in enumerate(words) if text.startswith("bind /dev ("))
    assert dev < words.index("tmpfs on /dev/shm (size=1g,mode=1777; shm_size)")


def test_rlimits_of_site_and_environment_are_in_the_entry_and_the_plan() -> None:
    settings = Settings(rlimits=(Rlimit("memlock", -1, -1), Rlimit("core", 0, 0)))
    environment = PLAIN._replace(machine=Machine(rlimits=(Rlimit("core", 0, -1),)))
    plan = make_plan(
        "/x", environment, settings, JOB, additions=machine.additions(environment, settings)
    )
    entry = environ.make_entry("a@b", plan, JobPaths("7", "/jobs"), [], environment)
    assert b"\0rlimit\0memlock\0unlimited\0unlimited\0rlimit\0core\x000\0unlimited\0" in entry
    assert plan.describe()[-2:] == [
        "limit memlock=unlimited of each process",
        "limit core=0:unlimited of each process",
    ]
