"""Eight nodes, a slow front before their registry, and what the registry was asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from cluster_site import KEEP
from site_tools import REPOSITORY, SETTINGS, TOOLS, Job, Site

NODES = tuple(f"n{number}" for number in range(1, 9))
STORE = "/shared/hpcwrap/store"
OWN_STORE = "/var/lib/hpcwrap-own"
CACHE = "/var/cache/hpcwrap-own"
LOG = "/shared/hpcwrap/log/jobs.jsonl"
LIMITER = REPOSITORY / "tests" / "registry" / "limiter.py"
FRONT = "registry:5001"
REGISTRY = "registry:5000"
INSECURE = f'[[registry]]\nlocation = "{FRONT}"\ninsecure = true\n'
REGISTRIES = "/etc/containers/registries.conf.d/front.conf"
PROLOG = 'from hpcwrap.hook import main; main("prolog", "slurm")'
REQUEST = re.compile(r"10\.77\.0\.(\d+) GET (/v2/\S+) (\d+)")


class Asked(NamedTuple):
    """One answer of the front: the node that asked, the path, the code."""

    node: str
    path: str
    code: int


class Nodes(Site):
    """The eight nodes; everything cold before each test."""

    front: Optional[subprocess.Popen[str]] = None

    def bring_up(self) -> None:
        """Cluster, hpcwrap, two small images, and the front's address where skopeo looks."""
        if not os.environ.get(KEEP):
            self.need("cluster", "down")
        self.need("cluster", "up", "--nodes", str(len(NODES)))
        self.need("image", "push", "busybox-1")
        shutil.copy(LIMITER, self.path("shared", "limiter.py"))
        for node in NODES:
            self.need("cluster", "exec", node, "tee", REGISTRIES, stdin=INSECURE)
        self.need("site")
        self.push_variant("other")
        self.add_environment("other", f"image: {REGISTRY}/other:latest\n")
        self.add_environment("front", f"image: {FRONT}/busybox-1:latest\n")

    def path(self, *names: str) -> Path:
        """A path in the cluster's state, seen from outside."""
        return Path(self.state, *names)

    def configure(self, store: str = STORE, **settings: Any) -> None:
        """Write the settings, which all nodes share."""
        lines = {"store": store, "log": LOG, **settings}
        text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items())
        self.need("cluster", "exec", "ctl", "tee", f"{SETTINGS}/hpcwrap.yaml", stdin=text)

    def make_cold(self) -> None:
        """Empty the stores of all nodes, forget what was asked and what ran."""
        directories = [STORE, OWN_STORE, CACHE]
        for node in NODES:
            self.need("cluster", "exec", node, "rm", "-rf", *directories)
        self.need("cluster", "exec", "ctl", "rm", "-f", LOG)

    def start_front(self, rate: int, refuse: int = 0) -> None:
        """Start the slow front in ctl."""
        argv = [str(TOOLS / "cluster"), "--state", self.state, "exec", "ctl", "python3"]
        argv += ["/shared/limiter.py", FRONT, REGISTRY, "--rate", str(rate)]
        with self.path("limiter.log").open("w") as log:
            self.front = subprocess.Popen([*argv, "--refuse", str(refuse)], stdout=log, text=True)
        assert self.eventually(self.front_answers)
        self.path("limiter.log").write_text("")

    def front_answers(self) -> bool:
        """True when a request comes through."""
        look = "import urllib.request as r; r.urlopen('http://registry:5001/v2/')"
        return self.root("ctl", "python3", "-c", look).code == 0

    def stop_front(self) -> None:
        """End the front."""
        if self.front is not None:
            self.front.terminate()
            self.front.wait()

    def asked(self, what: str = "") -> List[Asked]:
        """The requests that came through the front, those with `what` in their path."""
        found = REQUEST.findall(self.path("limiter.log").read_text())
        every = [Asked(f"n{int(host) - 10}", path, int(code)) for host, path, code in found]
        return [each for each in every if what in each.path]

    def blobs(self) -> Counter[str]:
        """How often each blob was given out."""
        return Counter(each.path for each in self.asked("/blobs/") if each.code == 200)

    def jobs_at_once(self, script: str, count: int, *options: str) -> List[Job]:
        """Submit so many jobs at once and wait for the end of all."""
        array = f"--array=1-{count}"
        ran = self.submit(script, array, "--output=out-%A-%a", *options)
        assert ran.code == 0, ran.stderr
        return self.ended(ran.stdout.strip(), count)

    def ended(self, job_id: str, count: int) -> List[Job]:
        """Wait for the end of all jobs of an array."""
        assert self.eventually(lambda: self.has_ended(job_id), 120), self.job(job_id)
        return [self._of_array(job_id, number) for number in range(1, count + 1)]

    def _of_array(self, job_id: str, number: int) -> Job:
        code = re.search(r" ExitCode=(\d+):", self.job(f"{job_id}_{number}"))
        assert code
        output = self.alice("cat", f"out-{job_id}-{number}").stdout
        return Job(f"{job_id}_{number}", int(code[1]), output, "")

    def records(self) -> List[Dict[str, Any]]:
        """What the epilogs kept of each job on each node."""
        text = self.root("ctl", "cat", LOG).stdout
        return [json.loads(line) for line in text.splitlines()]

    def prologs(self, node: str) -> List[int]:
        """The prologs that run on a node, as numbers of its own: leaders, not their helpers."""
        lines = self.root(node, "ps", "-eo", "pid=,ppid=,args=").stdout.splitlines()
        rows = [line.split(None, 2) for line in lines]
        found = {int(pid): int(parent) for pid, parent, words in rows if PROLOG in words}
        return [pid for pid, parent in found.items() if parent not in found]

    def push_variant(self, name: str) -> None:
        """Push the small image with another configuration, which is another image to the store."""
        layout = self.path("shared", name)
        shutil.copytree(self.need("image", "path", "busybox-1").strip(), layout, dirs_exist_ok=True)
        index = json.loads((layout / "index.json").read_text())
        blobs = layout / "blobs" / "sha256"
        manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_text())
        config = json.loads((blobs / manifest["config"]["digest"][7:]).read_text())
        config["config"]["Labels"] = {"name": name}
        manifest["config"].update(write_blob(blobs, config))
        index["manifests"][0].update(write_blob(blobs, manifest))
        (layout / "index.json").write_text(json.dumps(index))
        argv = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:/shared/{name}"]
        self.need("cluster", "exec", "ctl", *argv, f"docker://{REGISTRY}/{name}:latest")

    def images(self) -> Dict[str, Dict[str, Any]]:
        """What the shared store has, by environment."""
        listed = json.loads(self.root("ctl", "hpcwrap", "images", "--json").stdout)
        return {name: image for image in listed for name in image["environments"]}

    def digests(self, environment: str) -> List[str]:
        """The digest of an environment's image, in a list as `copies` has it."""
        return [self.images()[environment]["digest"][7:]]

    def copies(self, node: str) -> List[str]:
        """The hex digests of the images in a node's cache."""
        names = self.root(node, "ls", f"{CACHE}/images").stdout.split()
        return [name[:-5] for name in names if name.endswith(".sqsh")]

    def spoil(self, store: str, environment: str) -> None:
        """Overwrite a squashfs by as many zeros."""
        path = f"{store}/images/{self.digests(environment)[0]}.sqsh"
        size = self.images()[environment]["size"]
        self.need("cluster", "exec", "ctl", "truncate", "-s", "0", path)
        self.need("cluster", "exec", "ctl", "truncate", "-s", str(size), path)

    def wait_for_request(self, what: str) -> Asked:
        """The first request with `what` in its path, as soon as it was answered."""
        assert self.eventually(lambda: bool(self.asked(what)), 60)
        return self.asked(what)[0]


def write_blob(directory: Path, document: Any) -> Dict[str, Any]:
    """Write a blob of an OCI layout; its descriptor."""
    content = json.dumps(document).encode()
    digits = hashlib.sha256(content).hexdigest()
    (directory / digits).write_bytes(content)
    return {"digest": f"sha256:{digits}", "size": len(content)}
