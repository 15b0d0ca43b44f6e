"""From a reference to something that can be started, cold: hpcwrap pull, podman pull, the bound.

The bound is what the processors must do whatever the program: decompress the layers and compress
the squashfs, both at the same time, with nothing to resolve, move, merge, verify or publish.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from bench import place
from bench.model import Goal, Result, Row
from bench.processes import (
    REPOSITORY,
    BenchError,
    peak_memory,
    progress,
    run,
    spawn,
    timed,
)
from hpcwrap.image import manifest, squashfs
from hpcwrap.image.layer import index_layer
from hpcwrap.image.plan import ZEROS, Plan, flatten

ROUNDS = 5
GOAL_S, GOAL_BOUND = 5.0, 1.5
OURS, PODMAN = "hpcwrap pull", "podman pull"
BOUND, IN_A_ROW = "bound: igzip and mksquashfs at once", "igzip, then mksquashfs"

Work = Tuple[str, Callable[[], object]]


def measure(rounds: Optional[int]) -> Result:
    """Time them in turn; then each once more to look at its memory."""
    puller = Puller(place.get())
    layers = puller.layers()
    plan = write_merged(layers, puller.merged)
    bound = Bound(layers, puller.merged, plan, place.get().path("bound.sqsh"))
    work: List[Work] = [
        (OURS, puller.pull),
        (BOUND, bound.at_once),
        (IN_A_ROW, bound.in_a_row),
        (PODMAN, puller.podman),
    ]
    samples = time_all(work, puller.clear, rounds or ROUNDS)
    progress("looking at the memory")
    memory = {OURS: puller.pull_memory(), PODMAN: puller.podman_memory()}
    puller.clear()
    return describe(samples, puller.stages, memory, layers, plan)


def describe(
    samples: Dict[str, Row],
    stages: Dict[str, List[float]],
    memory: Dict[str, float],
    layers: Sequence[str],
    plan: Plan,
) -> Result:
    """Put the result together."""
    rows = list(samples.values())
    baselines = {f"{name}, processor": f"{OURS}, processor" for name in samples}
    for stage, spent in stages.items():
        rows.append(Row(f"of {OURS}: {stage}", "s", tuple(spent)))
    for name, most in memory.items():
        rows.append(Row(f"{name}, memory", "MB", (most,)))
        baselines[f"{name}, memory"] = f"{OURS}, memory"
    ours, bound = samples[OURS], samples[BOUND]
    ours_cpu, bound_cpu = samples[f"{OURS}, processor"], samples[f"{BOUND}, processor"]
    compressed = sum(os.path.getsize(layer) for layer in layers)
    return Result(
        "registry on loopback to an image that can be started, cold",
        rows,
        (
            Goal(OURS, ours.median, GOAL_S, "s"),
            Goal(f"{OURS} ÷ {IN_A_ROW}", ours.over(samples[IN_A_ROW]), GOAL_BOUND),
            Goal(f"{OURS} ÷ both at once", ours.over(bound), GOAL_BOUND),
            Goal("the latter, of processor time", ours_cpu.over(bound_cpu), GOAL_BOUND),
        ),
        (
            f"{len(layers)} layers, {compressed / 1e6:.0f} MB; the store is empty each time",
            f"merged: {plan.entries} entries, {plan.size / 1e6:.0f} MB of tar",
            "podman as root with the storage driver overlay: it unpacks and makes no squashfs",
            "memory: the largest sum of private resident pages of all processes, sampled",
        ),
        baselines,
    )


def time_all(work: Sequence[Work], clear: Callable[[], None], rounds: int) -> Dict[str, Row]:
    """Name → wall time, and "name, processor" → processor time, in s."""
    wall: Dict[str, List[float]] = {name: [] for name, _ in work}
    cpu: Dict[str, List[float]] = {name: [] for name, _ in work}
    for number in range(rounds):
        for name, action in work:
            progress(f"round {number + 1} of {rounds}: {name}")
            clear()
            os.sync()
            spent = timed(action)
            wall[name].append(spent.seconds)
            cpu[name].append(spent.cpu)
    rows = {name: Row(name, "s", tuple(samples)) for name, samples in wall.items()}
    for name, samples in cpu.items():
        rows[f"{name}, processor"] = Row(f"{name}, processor", "s", tuple(samples))
    return rows


class Puller:
    """The programs that pull, each into an empty store."""

    def __init__(self, here: place.Place) -> None:
        self.here = here
        self.merged = here.path("merged.tar")
        self.stages: Dict[str, List[float]] = {}
        self.config_file = place.write_settings(here.directory, here.reference, "cold")
        self.hpcwrap = [sys.executable, "-m", "hpcwrap", "--config", self.config_file, "pull"]
        self.hpcwrap += ["--json", place.IMAGE]
        self.podman_stores = 0

    def pull(self) -> None:
        """Run `hpcwrap pull`, and keep what its stages took."""
        document = json.loads(run(self.hpcwrap, cwd=REPOSITORY))
        for stage, spent in document["milliseconds"].items():
            self.stages.setdefault(stage, []).append(spent / 1e3)

    def podman(self) -> None:
        """Run `podman pull`."""
        run(self.podman_command())

    def podman_command(self) -> List[str]:
        """`podman pull` into a store of its own, not where another was just removed.

        ext4 steps over the inodes of files that were removed in the last half minute, one by one:
        to remove 16 000 files and to make as many again would cost podman seconds.
        """
        self.podman_stores += 1
        store = self.here.path(f"podman-{self.podman_stores}")
        # In a mount namespace of its own: podman leaves its storage mounted on itself.
        argv = ["unshare", "--mount", "podman", "--storage-driver", "overlay"]
        argv += ["--root", f"{store}/root", "--runroot", f"{store}/run"]
        return [*argv, "pull", "--quiet", "--tls-verify=false", self.here.reference]

    def pull_memory(self) -> float:
        """Peak of `hpcwrap pull` in MB."""
        self.clear()
        return peak_memory(self.hpcwrap, cwd=REPOSITORY)

    def podman_memory(self) -> float:
        """Peak of `podman pull` in MB."""
        return peak_memory(self.podman_command())

    def clear(self) -> None:
        """Empty our store."""
        shutil.rmtree(self.here.path("cold"), ignore_errors=True)

    def layers(self) -> List[str]:
        """The layers' files, lowest first."""
        raw = run(["skopeo", "inspect", "--raw", f"oci:{self.here.layout}"]).encode()
        blobs = manifest.parse_manifest(manifest.parse_document(raw)).layers
        return [self._blob(blob.digest) for blob in blobs]

    def _blob(self, digest: str) -> str:
        return os.path.join(self.here.layout, "blobs", *digest.split(":"))


class Bound:
    """The two programs that do the work, alone."""

    def __init__(self, layers: Sequence[str], merged: str, plan: Plan, output: str) -> None:
        self.merged = merged
        self.output = output
        self.decompress = ["igzip", "-dc", *layers]
        self.compress = squashfs.command(output, plan, squashfs.Format())

    def at_once(self) -> None:
        """Both at the same time."""
        self._remove_output()
        child = spawn(self.decompress)
        self._squash()
        if child.wait():
            raise BenchError("igzip failed")

    def in_a_row(self) -> None:
        """One after the other."""
        self._remove_output()
        if spawn(self.decompress).wait():
            raise BenchError("igzip failed")
        self._squash()

    def _squash(self) -> None:
        with open(self.merged, "rb") as stream:
            if spawn(self.compress, stdin=stream).wait():
                raise BenchError("mksquashfs failed")

    def _remove_output(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.output)


def write_merged(layers: Sequence[str], path: str) -> Plan:
    """Write the tar stream that hpcwrap gives to mksquashfs for these layers."""
    progress("merging the layers for the bound")
    plain = [f"{path}.{number}" for number in range(len(layers))]
    for layer, name in zip(layers, plain):
        with open(name, "wb") as file:
            if spawn(["igzip", "-dc", layer], stdout=file).wait():
                raise BenchError(f"igzip cannot decompress {layer}")
    contents = [_read(name) for name in plain]
    plan = flatten([index_layer(memoryview(content), lambda _: None) for content in contents])
    with open(path, "wb") as file:
        for segment in plan.segments:
            if isinstance(segment, bytes):
                file.write(segment)
            elif segment.layer == ZEROS:
                file.write(bytes(segment.end))
            else:
                file.write(contents[segment.layer][segment.start : segment.end])
    for name in plain:
        os.unlink(name)
    return plan


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
