"""GPUs by Slurm's gres: a job opens those that it was given, and steps choose among them.

No GPU is at hand: nodes with the numbers of /dev/zero stand in for /dev/nvidia0 to 3, and a spec
for NVIDIA's.  Slurm, its gres.conf and the variables that it sets are real.
"""

from __future__ import annotations

import json
import re
from typing import Dict, Iterator, List

import pytest
from site_tools import NODES, Job, Site
from slurm_conf import CONF, script

pytestmark = pytest.mark.slurm

INSIDE = "--container=busybox-1"
SPEC = "/etc/cdi/nvidia.json"
GPUS = range(4)

# The machine's devices are every node's: what stands in for GPUs must be this node's alone.
MAKE_DEVICES = r"""
set -e
mkdir -p /mnt/dev
mount -t tmpfs -o mode=755 dev /mnt/dev
cp -a --one-file-system /dev/. /mnt/dev
for n in $(seq 0 255); do [ -e /mnt/dev/loop$n ] || mknod -m 660 /mnt/dev/loop$n b 7 $n; done
for n in 0 1 2 3; do mknod -m 666 /mnt/dev/nvidia$n c 1 5; done
mknod -m 666 /mnt/dev/nvidiactl c 1 5
for d in pts shm mqueue; do
    if mountpoint -q /dev/$d; then mount --rbind /dev/$d /mnt/dev/$d; fi
done
mount --rbind /mnt/dev /dev
umount -l /mnt/dev
"""

LOOK = """#!/bin/sh
look() {
    for n in 0 1 2 3 ctl; do (: <>/dev/nvidia$n) 2>/dev/null && printf ' %s' $n; done
}
echo "$1 job=$SLURM_JOB_GPUS cuda=$CUDA_VISIBLE_DEVICES rocr=$ROCR_VISIBLE_DEVICES open=$(look)"
"""


def spec() -> str:
    def edits(*names: object) -> Dict[str, object]:
        return {"deviceNodes": [{"path": f"/dev/nvidia{name}"} for name in names]}

    devices = [{"name": str(number), "containerEdits": edits(number)} for number in GPUS]
    return json.dumps(
        {
            "cdiVersion": "0.5.0",
            "kind": "nvidia.com/gpu",
            "devices": devices,
            "containerEdits": edits("ctl"),
        }
    )


@pytest.fixture(scope="module", autouse=True)
def gpus(site: Site) -> Iterator[None]:
    """Nodes with four GPUs each, as Slurm and CDI see it."""
    for node in NODES:
        script(site, node, MAKE_DEVICES)
        script(site, node, "mkdir -p /etc/cdi")
        site.need("cluster", "exec", node, "tee", SPEC, stdin=spec())
    script(site, "ctl", f"cp {CONF} {CONF}.kept; echo GresTypes=gpu >>{CONF}")
    script(site, "ctl", f"sed -i 's/^NodeName=.*/& Gres=gpu:4/' {CONF}")
    line = "Name=gpu File=/dev/nvidia[0-3]"
    site.need("cluster", "exec", "ctl", "tee", "/etc/slurm/gres.conf", stdin=f"{line}\n")
    site.need("cluster", "restart")
    site.need("cluster", "as", "alice", "tee", "look", stdin=LOOK)
    yield
    script(site, "ctl", f"mv {CONF}.kept {CONF}; rm /etc/slurm/gres.conf")
    for node in NODES:
        script(site, node, "umount -l /dev; rm -r /etc/cdi")
    site.need("cluster", "restart")


def seen(job: Job, word: str = "here") -> List[Dict[str, str]]:
    """What the lines of the script `look` say."""
    assert job.code == 0, job.output + job.stderr
    line = re.compile(rf"^{word} job=(.*) cuda=(.*) rocr=(.*) open=(.*)$", re.MULTILINE)
    keys = ("job", "cuda", "rocr", "open")
    return [dict(zip(keys, map(str.strip, found))) for found in line.findall(job.output)]


def test_a_job_has_its_gpu_and_no_other(site: Site) -> None:
    job = site.batch("#!/bin/sh\nsh ./look here\nsrun sh ./look step\n", INSIDE, "--gres=gpu:1")
    (script,), (step,) = seen(job), seen(job, "step")
    assert script == {
        "job": script["job"],
        "cuda": "0",
        "rocr": "0",
        "open": f"{script['job']} ctl",
    }
    assert (step["cuda"], step["open"]) == ("0", script["open"])


def test_a_job_without_gpus_opens_none(site: Site) -> None:
    assert seen(site.batch("#!/bin/sh\nsh ./look here\n", INSIDE))[0]["open"] == ""
    outside = seen(site.batch("#!/bin/sh\nsh ./look here\n"))[0]
    assert outside["open"] == "0 1 2 3 ctl", "without a container, this cluster's jobs see all"


TOGETHER = """#!/bin/sh
touch here-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID
while ! [ -e here-$SLURM_ARRAY_JOB_ID-1 -a -e here-$SLURM_ARRAY_JOB_ID-2 ]; do sleep 0.1; done
sh ./look here
srun sh ./look step
srun --exact -n1 --gres=gpu:1 sh ./look part &
srun --exact -n1 --gres=gpu:1 sh ./look part &
wait
"""


def test_two_jobs_at_once_have_different_gpus_and_steps_their_own(site: Site) -> None:
    """The second job's are 2 and 3 on the node, and 0 and 1 inside, where nothing else opens."""
    ran = site.submit(
        TOGETHER, INSIDE, "--gres=gpu:2", "--array=1-2", "-w", "n1", "-n2", "--output=two-%a"
    )
    job_id = ran.stdout.strip()
    assert site.eventually(lambda: site.has_ended(job_id), 120), site.job(job_id)
    opened = []
    for number in (1, 2):
        job = Job(job_id, 0, site.alice("cat", f"two-{number}").stdout, "")
        script, *_ = seen(job)
        assert script["cuda"] == script["rocr"] == "0,1"
        opened.append(script["open"])
        assert [each["cuda"] for each in seen(job, "step")] == ["0,1"] * 2
        parts = seen(job, "part")
        assert sorted(each["cuda"] for each in parts) == ["0", "1"]
        assert {each["open"] for each in parts} == {script["open"]}
    assert sorted(opened) == ["0 1 ctl", "2 3 ctl"]


def test_srun_of_its_own_allocation(site: Site) -> None:
    ran = site.alice("srun", "-N2", "--gres=gpu:3", INSIDE, "/bin/sh", "./look", "here")
    found = seen(Job("1", ran.code, ran.stdout, ran.stderr))
    assert [each["open"] for each in found] == ["0 1 2 ctl"] * 2
    assert {each["cuda"] for each in found} == {"0,1,2"}


LIES = "CUDA_VISIBLE_DEVICES=0,1,2,3 SLURM_JOB_GPUS=0,1,2,3"


@pytest.mark.parametrize("own", ["--container=debian-12", "--container=none"])
def test_a_step_in_another_container_has_its_jobs_whatever_it_says(site: Site, own: str) -> None:
    step = f"srun {INSIDE} sh ./look step"
    job = site.batch(f"#!/bin/sh\n{step}\n{LIES} {step}\n", own, "--gres=gpu:1", "-wn1")
    first, lied = seen(job, "step")
    assert first["open"] == lied["open"] == f"{first['job']} ctl"
    none = site.batch(f"#!/bin/sh\n{LIES} {step}\n", own, "-wn1")
    assert [each["open"] for each in seen(none, "step")] == [""]
    assert script(site, "n1", "ls /run/hpcwrap/gpus") == ""


def test_steps_of_salloc_in_another_container_have_their_jobs(site: Site) -> None:
    ran = site.alice("salloc", "-Q", "--gres=gpu:2", "srun", INSIDE, "/bin/sh", "./look", "here")
    (found,) = seen(Job("1", ran.code, ran.stdout, ran.stderr))
    assert (found["open"], found["cuda"]) == ("0 1 ctl", "0,1")


def test_a_node_without_a_spec_says_so_and_stays_in_service(site: Site) -> None:
    script(site, "n2", f"mv {SPEC} {SPEC}.kept")
    try:
        job = site.batch("#!/bin/sh\necho RAN\n", INSIDE, "--gres=gpu:1", "-w", "n2")
    finally:
        script(site, "n2", f"mv {SPEC}.kept {SPEC}")
    assert job.code != 0
    assert "RAN" not in job.output
    assert "this node has no CDI spec of a GPU" in job.output
    assert "hpcwrap cdi generate nvidia" in job.output
    assert site.node_states() <= {"idle", "mix", "alloc"}


def test_an_environment_without_gpus_has_none(site: Site) -> None:
    site.add_environment("bare", "base: busybox-1\ngpus: none\n")
    try:
        job = site.batch("#!/bin/sh\nsh ./look here\n", "--container=bare", "--gres=gpu:2")
    finally:
        site.remove_environment("bare")
        site.need("cluster", "exec", "ctl", "hpcwrap", "setup", "slurm", "--table")
    assert seen(job)[0]["open"] == ""


def test_hpcwrap_run_has_those_that_are_asked_for(site: Site) -> None:
    def run(*options: str) -> str:
        words = (
            "run",
            "--user",
            "alice",
            *options,
            "busybox-1",
            "--",
            "/bin/sh",
            "/home/alice/look",
        )
        ran = site.root("n1", "hpcwrap", *words, "here")
        return seen(Job("", ran.code, ran.stdout, ran.stderr))[0]["open"]

    assert run() == ""
    assert run("--gpus", "none") == ""
    assert run("--gpus", "all") == "0 1 2 3 ctl"
    assert run("--gpus", "2,0") == "0 2 ctl"
    assert run("--device", "nvidia.com/gpu=3") == "3 ctl"
    refused = site.root("n1", "hpcwrap", "run", "--user", "alice", "--gpus", "9", "busybox-1")
    assert refused.code == 3
    assert "cannot bring the job's GPU 9 into its container" in refused.stderr
