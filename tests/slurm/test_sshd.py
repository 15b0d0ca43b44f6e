"""hpcwrap-sshd: ssh between the containers of a job, for programs that insist on it."""

import re
from typing import Dict, Iterator

import pytest
from site_tools import NODES, Job, Site

pytestmark = pytest.mark.slurm

IMAGE = "mpirun-12"
INSIDE = "--container=mpirun-12"
SSHD = "/usr/sbin/sshd"
SIZE = ("-N2", "-n2")
SCRIPT = """#!/bin/bash
say() { echo "== $1"; }
export MINE="a  b'c"
cat >inner.sh <<'END'
    say() { echo "== $1"; }
    say there; ssh n2 'readlink /proc/self/ns/mnt; uname -n; echo "$MINE"; pwd; exit 7'; echo $?
    say input; echo typed | ssh -x n2.cluster.example cat
    say chain; ssh n2 ssh n1 uname -n
    say environment; ssh n2 'echo $SLURM_JOB_ID $HPCWRAP_CONTAINER'
    say copy; scp -q /etc/hostname n2:/tmp/copied && ssh n2 'cat /tmp/copied; rm /tmp/copied'
    # From 23.11 on Slurm puts an option of srun's there, which is none of ssh's on hosts, either.
    unset HYDRA_LAUNCHER_EXTRA_ARGS
    say mpich; HYDRA_LAUNCHER=ssh timeout 40 mpirun.mpich -n 2 -ppn 1 uname -n
    say stranger; ssh -o BatchMode=yes -o ConnectTimeout=5 nobody.invalid true; echo $?
    exit 9
END
say steps; srun --ntasks-per-node=1 sh -c 'echo $(uname -n) $(readlink /proc/self/ns/mnt)'
say sshd; hpcwrap-sshd -- bash inner.sh; echo $?
say left; find /.hpcwrap/ssh -mindepth 1; srun --ntasks-per-node=1 pgrep -l ssh
say end
"""


def sections_of(job: Job) -> Dict[str, str]:
    """What a script said under each `== NAME`."""
    return dict(re.findall(r"^== (\S+)\n((?:(?!== ).*\n)*)", job.output, re.M))


@pytest.fixture(scope="module")
def ready(site: Site) -> Iterator[Site]:
    """The site with the image that has OpenSSH."""
    site.need("image", "build", IMAGE)
    site.need("image", "push", IMAGE)
    site.add_environment(IMAGE, f"image: registry:5000/{IMAGE}:latest\n")
    yield site
    site.remove_environment(IMAGE)


@pytest.fixture(scope="module")
def sections(ready: Site) -> Dict[str, str]:
    """One job on two nodes, on ssh's every way."""
    job = ready.batch(SCRIPT, INSIDE, *SIZE)
    print(job.output)
    return sections_of(job)


def test_ssh_leads_into_the_jobs_container(sections: Dict[str, str]) -> None:
    containers = dict(line.split() for line in sections["steps"].splitlines())
    assert set(containers) == set(NODES)
    assert sections["there"].splitlines() == [
        *(containers["n2"], "n2", "a  b'c", "/home/alice", "7"),
    ]


def test_ssh_is_as_users_know_it(sections: Dict[str, str]) -> None:
    assert sections["input"] == "typed\n"
    assert sections["chain"] == "n1\n"
    assert sections["copy"] != ""


def test_the_environment_is_the_jobs(sections: Dict[str, str]) -> None:
    assert re.fullmatch(rf"\d+ {IMAGE}@sha256:\w+\n", sections["environment"])


def test_mpirun_may_use_it(sections: Dict[str, str]) -> None:
    assert sorted(sections["mpich"].split()) == ["n1", "n2"]


def test_the_commands_code_is_the_end_and_nothing_is_left(sections: Dict[str, str]) -> None:
    assert sections["stranger"].endswith("255\n9\n")
    left = [line for line in sections["left"].splitlines() if not line.startswith("srun: ")]
    assert left == []


HOLD = """#!/bin/bash
hpcwrap-sshd -- sh -c 'cp $(dirname $(command -v ssh))/../config ssh-config; touch up
while [ -e up ]; do sleep 0.1; done'
"""


@pytest.fixture
def held(ready: Site) -> Iterator[Site]:
    """A job of alice with sshds on both nodes; her ssh's settings are in `ssh-config`."""
    ready.alice("rm", "-f", "up")
    job = ready.submit(HOLD, INSIDE, *SIZE).stdout.strip()
    assert ready.eventually(lambda: ready.alice("ls", "up").code == 0)
    yield ready
    ready.alice("rm", "-f", "up")
    ready.alice("scancel", job)
    assert ready.eventually(lambda: ready.has_ended(job), 60)
    assert ready.eventually(lambda: not sshds(ready))


def sshds(site: Site) -> str:
    """The processes of sshd on both nodes."""
    return "".join(site.root(node, "pgrep", "-a", "sshd").stdout for node in NODES)


def port_of(site: Site) -> str:
    """The port of the sshd on n1."""
    found = re.search(
        r"^Host n1 .*?Port (\d+)", site.alice("cat", "ssh-config").stdout, re.M | re.S
    )
    assert found
    return found[1]


def ssh(site: Site, user: str, *options: str) -> "tuple[int, str]":
    """Try to log in on n1's sshd from its very node; the code, and what was said."""
    argv = ["ssh", "-p", port_of(site), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    argv += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=INFO", *options]
    ran = site.root("n1", "runuser", "-u", user, "--", *argv, "alice@n1", "id")
    return ran.code, ran.stdout + ran.stderr


def test_only_the_jobs_key_gets_in(held: Site) -> None:
    for user in ("alice", "bob", "root"):
        code, said = ssh(held, user)
        assert code == 255
        assert "Permission denied (publickey)" in said
    made = held.root("n1", "sh", "-c", "rm -f /tmp/k*; ssh-keygen -qt ed25519 -N '' -f /tmp/k")
    assert made.code == 0
    held.root("n1", "chown", "bob", "/tmp/k")
    assert "Permission denied (publickey)" in ssh(held, "bob", "-i", "/tmp/k")[1]


def test_the_daemons_are_the_users_and_see_the_container(held: Site) -> None:
    listeners = [line for line in sshds(held).splitlines() if "listener" in line]
    assert len(listeners) == 2
    owner = held.root("n1", "ps", "-o", "user=", "-C", "sshd").stdout.split()
    assert set(owner) == {"alice"}


def test_two_runs_on_one_node_have_ports_of_their_own(held: Site) -> None:
    script = "#!/bin/bash\nhpcwrap-sshd -- ssh n1 uname -n\n"
    job = held.batch(script, INSIDE, "-N1", "-wn1", "--overcommit")
    assert job.output.splitlines()[-1:] == ["n1"]


def test_a_killed_run_takes_its_daemons_along(ready: Site) -> None:
    script = (
        "#!/bin/bash\nhpcwrap-sshd -- sh -c 'kill -9 $PPID; sleep 1'\n"
        "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.3; srun -N2 -n2 pgrep -l sshd || break; done\n"
        "echo ended $i; srun -N2 -n2 find /.hpcwrap/ssh -name 'key*'\n"
    )
    job = ready.batch(script, INSIDE, *SIZE)
    assert re.search(r"^ended [1-9]$", job.output, re.M)


@pytest.fixture
def sshd_of_host(ready: Site) -> Iterator[Site]:
    """Both nodes get the image's sshd as the host's, with the library that comes with it."""
    said = ready.root("n1", "ssh", "-V").stderr
    version = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    if version and (int(version[1]), int(version[2])) > (9, 7):
        pytest.skip("OpenSSH after 9.7 cannot be started from another root")
    library = "/usr/lib/x86_64-linux-gnu/libwrap.so.0"
    ready.alice("srun", "-n1", INSIDE, "cp", SSHD, library, "/home/alice")
    kept = [path for path in (SSHD, library) if ready.root("n1", "ls", path).code == 0]
    added = [path for path in (SSHD, library) if path not in kept]
    for node in NODES:
        for path in added:
            ready.root(node, "cp", f"/home/alice/{path.rpartition('/')[2]}", path)
    yield ready
    for node in NODES:
        ready.root(node, "rm", "-f", *added)


def test_the_hosts_openssh_stands_in(sshd_of_host: Site) -> None:
    """debian-12 has ssh, but no sshd."""
    script = "#!/bin/bash\nhpcwrap-sshd -- ssh n2 'uname -n; cat /etc/demo-image'\n"
    job = sshd_of_host.batch(script, "--container=debian-12", *SIZE)
    assert job.output.splitlines()[-2:] == ["n2", "debian-12"]


@pytest.fixture
def no_sshd_on_host(ready: Site) -> Iterator[Site]:
    """Neither node has an sshd, whatever this machine has."""
    for node in NODES:
        ready.root(node, "sh", "-c", f"! [ -e {SSHD} ] || mv {SSHD} {SSHD}.kept")
    yield ready
    for node in NODES:
        ready.root(node, "sh", "-c", f"! [ -e {SSHD}.kept ] || mv {SSHD}.kept {SSHD}")


def test_what_is_missing_is_said(no_sshd_on_host: Site) -> None:
    job = no_sshd_on_host.batch("#!/bin/sh\nhpcwrap-sshd true\n", "--container=debian-12", *SIZE)
    assert "cannot find sshd in the image or on this node" in job.output
    assert job.code == 125


def test_its_use_is_said(ready: Site) -> None:
    words = ("", " --", " --bogus id", " --help")
    script = "".join(f"hpcwrap-sshd{each}; echo $?\n" for each in words)
    job = ready.batch(f"#!/bin/sh\n{script}", INSIDE, *SIZE)
    usage = "usage: hpcwrap-sshd [--] COMMAND [ARGUMENT...]\n"
    assert job.output == f"hpcwrap-sshd: {usage}125\n" * 3 + f"{usage}0\n"


def test_a_shell_that_is_not_in_the_image_is_said(sshd_of_host: Site) -> None:
    """alice's is /bin/bash, and busybox-1 has sh alone."""
    job = sshd_of_host.batch("#!/bin/sh\nhpcwrap-sshd true\n", "--container=busybox-1", *SIZE)
    assert "cannot start an sshd: your shell /bin/bash is not in the image" in job.output
    assert job.code == 125
