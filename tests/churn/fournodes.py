"""Four nodes for a churn: images that know their names, some that are none, nodes that may boot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Dict, FrozenSet, Iterable, List, NamedTuple

from clusterlib import lifecycle, processes, reboot
from deck import IMAGES, Work
from site_tools import Site

NODES = ("n1", "n2", "n3", "n4")
REGISTRY = "registry:5000"
SHARED = "/shared/hpcwrap"

SLURM_CONF = """\
# Ended jobs stay known until the churn has been counted.
MinJobAge=86400
MaxJobCount=20000
# Each job's processes are in its cgroups, which Slurm can remove only when they are empty.
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
"""

CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
"""

PROVISION = """\
#!/bin/sh
# What tools/site does on a node: one that has been rebooted has no disk.
ln -sfn /shared/hpcwrap/etc /etc/hpcwrap
ln -sfn /opt/hpcwrap/bin/hpcwrap /usr/local/bin/hpcwrap
/opt/hpcwrap/bin/hpcwrap setup slurm >/dev/null
touch /etc/churn-host
"""

PUSH = """
import gzip, hashlib, io, json, os, subprocess, sys, tarfile, tempfile

name, broken = sys.argv[1], sys.argv[1] == "broken"
with tempfile.TemporaryDirectory() as root:
    os.environ["XDG_RUNTIME_DIR"] = root
    place = root + "/image"
    copy = ["skopeo", "copy", "--quiet"]
    base = "docker://registry:5000/busybox-1:latest"
    subprocess.run([*copy, "--src-tls-verify=false", base, "dir:" + place], check=True)
    def write(content):
        digits = hashlib.sha256(content).hexdigest()
        open(place + "/" + digits, "wb").write(content)
        return {"digest": "sha256:" + digits, "size": len(content)}
    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w") as tar:
        member = tarfile.TarInfo("churn-image")
        member.size = len(name) + 1
        tar.addfile(member, io.BytesIO(name.encode() + b"\\n"))
    layer = b"no tar at all" if broken else tree.getvalue()
    manifest = json.load(open(place + "/manifest.json"))
    config = json.load(open(place + "/" + manifest["config"]["digest"][7:]))
    docker = "docker" in manifest["layers"][0]["mediaType"]
    kind = "docker.image.rootfs.diff.tar.gzip" if docker else "oci.image.layer.v1.tar+gzip"
    content = gzip.compress(layer, mtime=0)
    manifest["layers"].append({"mediaType": "application/vnd." + kind, **write(content)})
    config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(layer).hexdigest())
    config.pop("history", None)
    manifest["config"].update(write(json.dumps(config).encode()))
    json.dump(manifest, open(place + "/manifest.json", "w"))
    target = "docker://registry:5000/churn-" + name
    subprocess.run([*copy, "--dest-tls-verify=false", "dir:" + place, target], check=True)
"""

ENVIRONMENTS = {
    **{name: f"image: {REGISTRY}/churn-{name}:latest\n" for name in (*IMAGES, "broken")},
    "missing": f"image: {REGISTRY}/churn-missing:latest\n",
    "forbidden": f"image: {REGISTRY}/churn-red:latest\nusers: [bob]\n",
}

QUEUE = ["squeue", "-a", "-r", "-h", "-t", "all", "-o", "%i|%T|%r|%j|%M"]


UNFIT = re.compile(r"drain|down|fail|error|unknown|\*$")


class Row(NamedTuple):
    """A job as squeue(1) has it, each of an array; long after its end, too."""

    id: str
    state: str
    reason: str
    name: str
    time: str

    @property
    def seconds(self) -> int:
        """How long it has run, an hour at most (squeue(1), %M)."""
        words = self.time.split(":")
        return int(words[0]) * 60 + int(words[1]) if len(words) == 2 else 3600

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")


class FourNodes(Site):
    """The cluster; commands of root's are started at once, without the tool's own start.

    `unwatched` are jobs whose slurmstepd was killed: nobody is left to remove their cgroups.
    """

    unwatched: FrozenSet[str] = frozenset()

    def bring_up(self) -> None:
        """Cluster, hpcwrap, images and environments."""
        self.take_down()  # of a run that was killed
        self.need("cluster", "up", "--nodes", str(len(NODES)))
        self.need("image", "push", "busybox-1")
        with self.path("etc-slurm", "slurm.conf").open("a") as file:
            file.write(SLURM_CONF)
        self.path("etc-slurm", "cgroup.conf").write_text(CGROUP_CONF)
        self.path("shared", "provision.sh").write_text(PROVISION)
        self.need("site")
        for name in (*IMAGES, "broken"):
            self.need("cluster", "exec", "ctl", "/usr/bin/python3", "-", name, stdin=PUSH)
        for name, text in ENVIRONMENTS.items():
            self.write_environment(name, text)
        self.tell_scheduler()
        for node in NODES:
            self.run(node, "sh", "/shared/provision.sh")

    def take_down(self) -> None:
        """The cluster, which no other run can go on with, and Slurm's cgroups: the machine's."""
        self.need("cluster", "down")
        for node in NODES:
            reboot.remove_cgroups(node)

    def path(self, *names: str) -> Path:
        """A path in the cluster's state, seen from outside."""
        return Path(self.state, *names)

    def node_path(self, node: str, *names: str) -> Path:
        """A path on a node, seen from outside."""
        return Path(f"/proc/{self.pids[node]}/root", *names)

    def run(self, node: str, *words: str, check: bool = True) -> str:
        """Run a command as root on a node, without a word about it."""
        return processes.run_in(self.pids[node], words, check=check)

    @property
    def pids(self) -> Dict[str, int]:
        """Node → its process 1; another after a reboot."""
        return lifecycle.node_pids(self.state)

    def cgroups(self, node: str) -> List[str]:
        """Cgroups of jobs, Slurm's and hpcwrap's."""
        tops = Path("/sys/fs/cgroup").glob(f"*/slurm_{node}")
        jobs = [path for top in tops for path in top.glob("uid_*/job_*")]
        found = [str(path) for path in jobs if path.name.partition("_")[2] not in self.unwatched]
        return found + super().cgroups(node)

    # ---- jobs ----

    def queue(self) -> List[Row]:
        """All jobs that were ever submitted, by Slurm's own account."""
        lines = self.run("ctl", *QUEUE).splitlines()
        return [Row(*line.split("|")) for line in lines if line.count("|") == 4]

    def submit_all(self, works: Iterable[Work]) -> List[int]:
        """Submit, each as its user; the numbers of those that were refused."""
        by_user: Dict[str, List[Work]] = {}
        for work in works:
            by_user.setdefault(work.user, []).append(work)
        refused = []
        for user, own in by_user.items():
            script = "mkdir -p churn && cd churn\n" + "".join(map(submission, own))
            ran = self.tool("cluster", "as", user, "sh", stdin=script)
            words = [line.split() for line in ran.stdout.splitlines()]
            refused += [int(word[1]) for word in words if word[:1] == ["refused"]]
        return refused

    def outputs(self) -> Dict[int, List[str]]:
        """Number of a work → the lines that its jobs have written."""
        lines: Dict[int, List[str]] = {}
        for path in sorted(self.path("home").glob("*/churn/out-*")):
            number = int(path.name.split("-")[1])
            lines.setdefault(number, []).extend(path.read_text(errors="replace").splitlines())
        return lines

    def doctor(self, node: str) -> List[Dict[str, str]]:
        """What `hpcwrap doctor` finds on a node that is wrong or missing.

        Cgroups of another cluster's node of the same name are not this one's: Slurm's jobs have
        numbers, and no cgroup of ours.
        """
        found = json.loads(self.run(node, "hpcwrap", "doctor", "--json", check=False))
        bad = [each for each in found if each["state"] in ("wrong", "missing")]
        return [each for each in bad if not re.search(r"hpcwrap-[a-z]", each["file"])]

    def drained(self) -> List[str]:
        """Nodes that take no jobs any more, and why (sinfo(1), NODE STATE CODES)."""
        lines = self.run("ctl", "sinfo", "-h", "-N", "-p", "main", "-o", "%N|%T|%E").splitlines()
        return [line for line in lines if UNFIT.search(line.split("|")[1])]


def submission(work: Work) -> str:
    """The lines of a shell that submit a work; every other one says it in a directive."""
    asked = f"--container={work.container}" if work.container else ""
    options = " ".join((f"--job-name={work.name}", *work.options))
    output = f"out-{work.number}"
    if work.kind == "srun":
        quoted = work.script.replace("'", "'\\''")
        said = f"setsid srun {options} {asked} sh -c '{quoted}'"
        return f"{said} </dev/null >{output}-srun 2>&1 &\n"
    directive = f"#SBATCH {asked}\n" if asked and work.number % 2 else ""
    option = asked if asked and not directive else ""
    said = f"sbatch --quiet --parsable --open-mode=append --output={output}-%j {options} {option}"
    return (
        f"{said} 2>>refused.log <<'END' || echo refused {work.number}\n"
        f"#!/bin/sh\n{directive}{work.script}END\n"
    )
