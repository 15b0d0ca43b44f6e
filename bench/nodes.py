"""One image on eight nodes at once: how long until the last rank runs, what the registry is asked.

A cluster of its own with eight nodes on this one machine: what they do at once they do on the same
processors, so eight conversions take here eight times as long as on eight machines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from bench.model import Result, Row
from bench.place import BASE, IMAGE
from bench.processes import REPOSITORY, progress, run

ROUNDS = 3
STATE = os.path.join(BASE, "nodes")
NODES = tuple(f"n{number}" for number in range(1, 9))
LOG = "/shared/hpcwrap/log/jobs.jsonl"
REGISTRY_LOG = "/var/log/docker-registry.log"
SETTINGS = "/shared/hpcwrap/etc/hpcwrap.yaml"
SHARED, OWN, CACHE = "/shared/hpcwrap/store", "/var/lib/hpcwrap-own", "/var/cache/hpcwrap-own"
PATIENCE_S = 20
REQUEST = re.compile(r'"GET /v2/[^/]\S*/(manifests|blobs)/\S+ HTTP/[\d.]+" 200 (\d+)')


class Way(NamedTuple):
    """Where the nodes have their images, and what is emptied before each round."""

    name: str
    settings: Dict[str, Any]
    empty: Sequence[str]


WAYS = (
    Way("one store for all, cold", {"store": SHARED}, (SHARED,)),
    Way("one store for all, warm", {"store": SHARED}, ()),
    Way("and a cache a node, cold", {"store": SHARED, "cache": CACHE}, (CACHE,)),
    Way("and a cache a node, warm", {"store": SHARED, "cache": CACHE}, ()),
    Way("a store a node, cold", {"store": OWN}, (OWN,)),
    Way("a store a node, warm", {"store": OWN}, ()),
)


class Seen(NamedTuple):
    """One start: seconds to the last rank and for the image; what the registry was asked."""

    start: float
    image: float
    apart: float
    manifests: int
    blobs: int
    megabytes: float


def measure(rounds: Optional[int]) -> Result:
    """Start a job of eight nodes, each way so many times."""
    try:
        bring_up()
        seen = {way.name: [start(way) for _ in range(rounds or ROUNDS)] for way in WAYS}
    finally:
        take_down()
    rows: List[Row] = []
    for name, every in seen.items():
        rows.append(Row(f"{name}: all run", "s", tuple(x.start for x in every)))
        rows.append(Row(f"{name}: image there", "s", tuple(x.image for x in every)))
        rows.append(Row(f"{name}: nodes apart", "s", tuple(x.apart for x in every)))
        asked = tuple(float(x.manifests + x.blobs) for x in every)
        rows.append(Row(f"{name}: asked for", "requests", asked))
        rows.append(Row(f"{name}: given out", "MB", tuple(x.megabytes for x in every)))
    return Result(
        f"srun -N{len(NODES)} of {IMAGE}, eight nodes on one machine",
        rows,
        notes=(
            "all run: from the first prolog to the start of the last rank",
            "image there: the longest that a node pulled, copied or waited for its image",
            "nodes apart: from the first node that had its image to the last",
            "asked for: GETs of manifests and blobs that the registry answered",
        ),
        baselines={row.what: row.what for row in rows},
    )


def bring_up() -> None:
    """The cluster with hpcwrap and the image in its registry."""
    progress(f"bringing up {len(NODES)} nodes")
    take_down()
    tool("cluster", "up", "--nodes", str(len(NODES)))
    tool("image", "push", IMAGE)
    tool("site")


def take_down() -> None:
    """The cluster and its files."""
    if os.path.isdir(STATE):
        tool("cluster", "down")
        shutil.rmtree(STATE, ignore_errors=True)


def start(way: Way) -> Seen:
    """One job: a rank a node, each of which tells when it runs."""
    progress(f"srun -N{len(NODES)}: {way.name}")
    prepare(way)
    before = len(registry_log())
    argv = ["srun", f"-N{len(NODES)}", f"--container={IMAGE}", "date", "+%s.%N"]
    ranks = [float(line) for line in run(cluster("as", "alice", *argv)).split()]
    records = job_records()
    asked = [REQUEST.search(line) for line in registry_log()[before:]]
    answered = [found for found in asked if found]
    there = [float(record["started"]) - prolog_seconds(record) for record in records]
    kinds = [found[1] for found in answered]
    return Seen(
        start=max(ranks) - min(began(record) for record in records),
        image=max(image_seconds(record) for record in records),
        apart=max(there) - min(there),
        manifests=kinds.count("manifests"),
        blobs=kinds.count("blobs"),
        megabytes=sum(int(found[2]) for found in answered) / 1e6,
    )


def prepare(way: Way) -> None:
    """The settings of a way, its directories empty, no log of jobs."""
    lines = {"log": LOG, **way.settings}
    with open(os.path.join(STATE, SETTINGS.lstrip("/")), "w", encoding="utf-8") as file:
        file.writelines(f"{name}: {value}\n" for name, value in lines.items())
    for node in NODES if way.empty else ():
        run(cluster("exec", node, "rm", "-rf", *way.empty))
    run(cluster("exec", "ctl", "rm", "-f", LOG))


def job_records() -> List[Dict[str, Any]]:
    """What the epilogs kept of the job, one record a node: they come after the job's end."""
    end = time.monotonic() + PATIENCE_S
    lines: List[str] = []
    while len(lines) < len(NODES) and time.monotonic() < end:
        time.sleep(0.1)
        lines = run(cluster("exec", "ctl", "sh", "-c", f"cat {LOG} || true")).splitlines()
    return [json.loads(line) for line in lines]


def began(record: Dict[str, Any]) -> float:
    """When a prolog began, an epoch in s: without the start of its Python, some 0.03 s."""
    return float(record["started"]) - prolog_seconds(record) - image_seconds(record)


def prolog_seconds(record: Dict[str, Any]) -> float:
    """How long the prolog took once the image was there."""
    return float(record["milliseconds"]["prolog"]) / 1e3


def image_seconds(record: Dict[str, Any]) -> float:
    """How long a node was busy with the image: pulling, copying, waiting."""
    others = ("prolog", "epilog")
    times = record["milliseconds"].items()
    return float(sum(value for name, value in times if name not in others)) / 1e3


def registry_log() -> List[str]:
    """The registry's log so far."""
    return run(cluster("exec", "ctl", "cat", REGISTRY_LOG)).splitlines()


def cluster(*words: str) -> List[str]:
    """The argv of tools/cluster on our cluster."""
    return [os.path.join(REPOSITORY, "tools", "cluster"), "--state", STATE, *words]


def tool(name: str, *words: str) -> None:
    """Run one of the tools on our cluster."""
    environment = {**os.environ, "HPCWRAP_CLUSTER": STATE}
    run([os.path.join(REPOSITORY, "tools", name), *words], env=environment)
