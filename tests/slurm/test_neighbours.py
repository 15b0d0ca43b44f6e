"""Other parts of Slurm, and other people's, beside hpcwrap on the same nodes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Iterator

import pytest
from site_tools import NODES, Site
from slurm_conf import CONF, ETC, script, switched_on

pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent
TINY = "--container=busybox-1"

OCI_CONF = """\
RunTimeQuery="echo stopped"
RunTimeKill="true"
RunTimeDelete="true"
RunTimeRun="echo run by Slurm"
"""
BUNDLE = {
    "ociVersion": "1.0.0",
    "process": {"args": ["true"], "cwd": "/", "env": []},
    "root": {"path": "rootfs"},
    "mounts": [],
}
JOB_CONTAINER_CONF = "AutoBasePath=true\nBasePath=/var/lib/jobs\n"
if os.environ.get("HPCWRAP_SLURM", "22.05") != "22.05":
    JOB_CONTAINER_CONF += "EntireStepInNS=true\n"
# Slurm pins its namespace by a bind mount, which recent kernels refuse to one that was made on the
# wrong CPU (docs/decisions/0040): hpcwrap tries them all, Slurm has the one that its slurmd is on.
STOP = """
kill $(cat /run/slurmd.pid)
while kill -0 $(cat /run/slurmd.pid) 2>/dev/null; do sleep 0.1; done
"""
SLURMD = "taskset -c $(readlink /run/hpcwrap/good-cpu) slurmd"
LINES = (
    "PrologFlags=Alloc,Contain",
    "JobContainerType=job_container/tmpfs",
    "SlurmctldParameters=enable_configless",
)


def build_neighbour(site: Site, name: str) -> str:
    """Compile the other plugin under a name for the Slurm of the nodes; where all see it."""
    source = (HERE / "neighbour.c").read_text()
    site.need("cluster", "exec", "ctl", "tee", f"/shared/{name}.c", stdin=source)
    made = f"/shared/{name}.so"
    script(site, "ctl", f"cc -shared -fPIC -DNAME={name} -o {made} /shared/{name}.c")
    return made


@pytest.fixture(scope="module", autouse=True)
def neighbours(site: Site) -> Iterator[None]:
    """All of them at once, as at a site; two other plugins around ours."""
    ours = script(site, "ctl", f"cat {ETC}/plugstack.conf")
    first, last = (build_neighbour(site, name) for name in ("first", "last"))
    files = {
        "plugstack.conf": f"required {first}\n{ours}\nrequired {last}\n",
        "oci.conf": OCI_CONF,
        "job_container.conf": JOB_CONTAINER_CONF,
    }
    with switched_on(site, LINES, files):
        script(site, "ctl", "hpcwrap setup slurm --table")
        for node in NODES:
            script(site, node, f"hpcwrap run --user alice busybox-1 -- true; {STOP} {SLURMD}")
        yield
    script(site, "ctl", "hpcwrap setup slurm --table; rm -f /shared/first.* /shared/last.*")


# ---- job_container/tmpfs ----

PRIVATE = """#!/bin/sh
for place in /tmp /dev/shm; do
    echo mine >$place/mine-$SLURM_JOB_ID
    srun --overlap -n2 sh -c "cat $place/mine-$SLURM_JOB_ID; echo rank >$place/rank-\\$SLURM_PROCID"
    ls $place | tr '\\n' ' '
done
touch here-$SLURM_JOB_ID
while ! [ -e go-$SLURM_JOB_ID ]; do sleep 0.1; done
"""


def test_the_jobs_private_directories_are_the_containers(site: Site) -> None:
    ran = site.submit(PRIVATE, TINY, "-n2", "-wn1", "--output=private.out")
    job = ran.stdout.strip()
    assert site.eventually(lambda: site.alice("ls", f"here-{job}").code == 0, 60), site.job(job)
    outside = script(site, "n1", "ls /tmp /dev/shm")
    other = site.alice("srun", TINY, "-wn1", "--overlap", "ls", "/tmp").stdout
    site.alice("touch", f"go-{job}")
    assert site.eventually(lambda: site.has_ended(job), 60)
    said = site.alice("cat", "private.out").stdout
    assert said.count("mine\n") == 4, said
    assert said.count(f"mine-{job} rank-0 rank-1") == 2, said
    assert f"mine-{job}" not in outside + other
    assert site.eventually(lambda: script(site, "n1", f"find /var/lib/jobs -name {job}") == "")


def test_a_step_in_another_container_has_them_too(site: Site) -> None:
    """Its prolog is on the host, even where slurmstepd is not (EntireStepInNS)."""
    ask = "cat /tmp/mine; echo in ${HPCWRAP_CONTAINER%%@*}"
    job = site.batch(
        f"#!/bin/sh\necho mine >/tmp/mine\nsrun --container=debian-12 sh -c '{ask}'\n", TINY, "-wn1"
    )
    assert job.output == "mine\nin debian-12\n"
    assert site.eventually(lambda: site.leftovers("n1") == []), site.leftovers("n1")


def test_its_user_cannot_keep_root_waiting(site: Site) -> None:
    """What a rank locks, while it has root's rights, the user can have no lock on."""
    held = """
import fcntl, sys, time
directory = "/run/hpcwrap/jobs/" + sys.argv[1] + "/"
files = [open(directory + name, "rb") for name in ("entry", "record.json", "timing")]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_SH)
print("held", flush=True)
time.sleep(300)
"""
    site.need("cluster", "exec", "n1", "tee", "/tmp/hold.py", stdin=held)
    stay = "#!/bin/sh\ntouch here-$SLURM_JOB_ID; sleep 300\n"
    job = site.submit(stay, TINY, "-wn1").stdout.strip()
    assert site.eventually(lambda: site.alice("ls", f"here-{job}").code == 0, 60), site.job(job)
    holds = f"runuser -u alice -- python3 /tmp/hold.py {job} >/tmp/held 2>&1 & echo $!"
    holder = script(site, "n1", holds).strip()
    try:
        assert site.eventually(lambda: script(site, "n1", "cat /tmp/held") == "held\n")
        srun = ("timeout", "-s", "KILL", "30", "srun", f"--jobid={job}", "--overlap")
        assert site.alice(*srun, "echo", "inside").stdout == "inside\n"
    finally:
        script(site, "n1", f"kill {holder}")
        site.alice("scancel", job)
    assert site.eventually(lambda: site.has_ended(job), 60)


def test_they_are_as_without_a_container(site: Site) -> None:
    ask = "stat -c '%a %U %n' /tmp /dev/shm; touch /tmp/x /dev/shm/x && echo written"
    said = [
        site.batch(f"#!/bin/sh\n{ask}\n", *options, "-wn1").output
        for options in ((), ("--container=debian-12",))
    ]
    assert said[0] == said[1]


def test_setup_knows_of_it(site: Site) -> None:
    told = site.root("n1", "hpcwrap", "setup", "slurm", "--check").stdout
    assert "JobContainerType" not in told


# ---- other SPANK plugins ----


def test_hooks_and_options_of_other_plugins_work(site: Site) -> None:
    ask = "env | grep ^NEIGHBOUR_ | sort"
    options = (TINY, "--say-first=one", "--say-last=two")
    job = site.batch(f"#!/bin/sh\nsrun sh -c '{ask}'\n", *options)
    said = dict(line.split("=", 1) for line in job.output.splitlines() if "=" in line)
    assert (said["NEIGHBOUR_first_said"], said["NEIGHBOUR_last_said"]) == ("one", "two")
    assert said["NEIGHBOUR_first_privileged"] == said["NEIGHBOUR_last_privileged"] == "yes"
    assert said["NEIGHBOUR_last_container"].startswith("busybox-1@"), "those after ours see it"


def test_a_job_without_a_container_has_them_too(site: Site) -> None:
    ran = site.alice("srun", "--say-last=two", "sh", "-c", "env | grep ^NEIGHBOUR_last")
    assert "NEIGHBOUR_last_said=two" in ran.stdout
    assert "NEIGHBOUR_last_container=none" in ran.stdout


# ---- Slurm's own containers ----


def test_a_name_is_hpcwraps_where_oci_conf_is(site: Site) -> None:
    job = site.batch(
        "#!/bin/sh\necho $HPCWRAP_CONTAINER\nsrun sh -c 'echo $HPCWRAP_CONTAINER'\n", TINY
    )
    assert job.code == 0
    assert job.output.count("busybox-1@sha256:") == 2, job.output
    ran = site.alice("srun", "-n2", TINY, "sh", "-c", "echo $HPCWRAP_CONTAINER")
    assert ran.stdout.count("busybox-1@sha256:") == 2, ran.stderr


def test_the_path_of_a_bundle_is_slurms(site: Site) -> None:
    site.alice("mkdir", "-p", "bundle/rootfs")
    site.alice("tee", "bundle/config.json", stdin=json.dumps(BUNDLE))
    ran = site.alice("srun", "--container=/home/alice/bundle", "true")
    assert ran.stdout == "run by Slurm\n", ran.stderr


def test_an_unknown_name_is_refused_where_oci_conf_is(site: Site) -> None:
    ran = site.alice("srun", "--container=nonesuch", "echo", "RAN")
    assert ran.code != 0
    assert "RAN" not in ran.stdout
    assert "nonesuch" in ran.stderr


# ---- configless ----


@pytest.fixture
def configless(site: Site) -> Iterator[str]:
    """A node without files of Slurm's, whose slurmd asks slurmctld for them."""
    hidden = f"mount -t tmpfs empty {ETC}; env -u SLURM_CONF {SLURMD} --conf-server ctl"
    script(site, "n2", STOP + hidden)
    yield "n2"
    script(site, "n2", f"{STOP} umount {ETC}; {SLURMD}")
    assert site.eventually(lambda: site.node_states() == {"idle"})


def test_a_node_without_configuration_files(site: Site, configless: str) -> None:
    assert script(site, configless, f"ls {ETC}") == ""
    job = site.batch(
        "#!/bin/sh\necho script $HPCWRAP_CONTAINER\nsrun -n2 sh -c 'echo step $HPCWRAP_CONTAINER'\n"
        "squeue -h -j $SLURM_JOB_ID -o %u\n",
        *(TINY, "-n2", f"-w{configless}"),
    )
    assert job.code == 0, job.output
    assert re.findall(r"^(script|step) busybox-1@", job.output, re.M) == ["script", "step", "step"]
    assert job.output.endswith("alice\n")
    assert CONF not in job.output
