"""From a reference to something that can be started, cold: hpcwrap pull, its peers, the bound.

The bound is what the processors must do whatever the program: decompress the layers and compress
the squashfs, with nothing to resolve, move, merge, verify or publish.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import sys
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from bench import peers, place
from bench.model import Goal, Result, Row
from bench.processes import REPOSITORY, BenchError, peak_memory, progress, run, spawn, timed
from hpcwrap.image import manifest, squashfs
from hpcwrap.image.download import Format
from hpcwrap.image.layer import index_layer
from hpcwrap.image.plan import ZEROS, Plan, flatten

OURS, OURS_LZ4, PODMAN, CH_IMAGE, APPTAINER = (
    "hpcwrap pull",
    "hpcwrap pull, squashfs_compression: lz4",
    "podman pull",
    "ch-image pull",
    "apptainer build",
)
BOUND, IN_A_ROW = "bound: igzip and mksquashfs at once", "igzip, then mksquashfs"
PEERS = {PODMAN: peers.podman, CH_IMAGE: peers.ch_image, APPTAINER: peers.apptainer}

GOAL_BOUND, GOAL_APPTAINER, GOAL_PODMAN = 1.3, 15, 2
GOAL_MB = 200

ROUNDS = 5
PEERS_ROUNDS = {PODMAN: 3, CH_IMAGE: 1, APPTAINER: 3}
LZ4_ROUNDS = 3

Samples = Dict[str, List[float]]


class Work(NamedTuple):
    """What is timed, and in how many of the rounds."""

    name: str
    action: Callable[[], object]
    rounds: int


def measure(rounds: Optional[int]) -> Result:
    """The demo image."""
    return measure_image(place.IMAGE, rounds or ROUNDS, PEERS_ROUNDS)


def measure_image(image: str, rounds: int, peers_rounds: Dict[str, int]) -> Result:
    """Time them in turn, the slow ones in the first rounds; then look at their memory."""
    peers.prepare()
    puller, in_lz4 = Puller(image), Puller(image, "lz4")
    layers = layers_of(image)
    merged = place.get().path(f"{image}.tar")
    plan = write_merged(layers, merged)
    bound = Bound(layers, merged, plan, place.get().path("bound.sqsh"))
    work = [
        Work(OURS, puller.pull, rounds),
        Work(OURS_LZ4, in_lz4.pull, min(rounds, LZ4_ROUNDS)),
        Work(BOUND, bound.at_once, rounds),
        Work(IN_A_ROW, bound.in_a_row, rounds),
        *(
            Work(name, runner(ready, image), min(rounds, peers_rounds[name]))
            for name, ready in PEERS.items()
        ),
    ]

    def prepare() -> None:
        puller.clear()
        in_lz4.clear()
        os.sync()
        peers.forget()

    warm_up(puller)
    samples = time_all(work, prepare)
    progress("looking at the memory")
    podman = peers.podman(image)
    memory = {OURS: puller.memory(), PODMAN: peak_memory(podman.argv, env=podman.env)}
    puller.clear()
    return describe(samples, puller.stages, memory, layers, plan)


def warm_up(puller: Puller) -> None:
    """Have the registry's files in memory: reading them from the disk makes no program slower."""
    progress("one pull that does not count")
    puller.pull()
    puller.stages.clear()


def runner(ready: Callable[[str], peers.Ready], image: str) -> Callable[[], object]:
    """What runs a peer."""

    def pull() -> None:
        argv, environment = ready(image)
        run(argv, env=environment)

    return pull


def describe(
    samples: Dict[str, Row],
    stages: Samples,
    memory: Dict[str, Dict[str, float]],
    layers: Sequence[str],
    plan: Plan,
) -> Result:
    """Put the result together."""
    rows = list(samples.values())
    baselines = {name: OURS for name in samples if name != OURS}
    baselines.update({f"{name}, processor": f"{OURS}, processor" for name in samples})
    for stage, spent in stages.items():
        rows.append(Row(f"of {OURS}: {stage}", "s", tuple(spent)))
    for name, parts in memory.items():
        rows.append(Row(f"{name}, memory", "MB", (sum(parts.values()),)))
        baselines[f"{name}, memory"] = f"{OURS}, memory"
    compressed = sum(os.path.getsize(layer) for layer in layers)
    shares = ", ".join(f"{name} {most:.0f}" for name, most in sorted(memory[OURS].items()))
    return Result(
        "registry on loopback to an image that can be started, cold",
        rows,
        goals(samples, sum(memory[OURS].values())),
        (
            f"{len(layers)} layers, {compressed / 1e6:.0f} MB; the store is empty each time",
            f"merged: {plan.entries} entries, {plan.size / 1e6:.0f} MB of tar",
            "podman and ch-image unpack as root, and make no squashfs; apptainer makes one",
            f"memory: the largest sum of private pages of all processes, sampled: {shares}",
        ),
        baselines,
    )


def goals(samples: Dict[str, Row], memory: float) -> Sequence[Goal]:
    """What issue and users ask for; ratios are those of rounds that both were in."""
    ours = samples[OURS]

    def slower(name: str) -> float:
        its = samples[name]
        return its.over(ours.first(len(its.samples)))

    return (
        Goal(f"{OURS} ÷ {IN_A_ROW}", ours.over(samples[IN_A_ROW]), GOAL_BOUND),
        Goal(f"{APPTAINER} ÷ {OURS}", slower(APPTAINER), GOAL_APPTAINER, "", at_least=True),
        Goal(f"{PODMAN} ÷ {OURS}", slower(PODMAN), GOAL_PODMAN, "", at_least=True),
        Goal(f"{OURS}, memory", memory, GOAL_MB, "MB"),
    )


def time_all(work: Sequence[Work], prepare: Callable[[], None]) -> Dict[str, Row]:
    """Name → wall time, and "name, processor" → processor time, in s."""
    wall: Samples = {each.name: [] for each in work}
    cpu: Samples = {each.name: [] for each in work}
    rounds = max(each.rounds for each in work)
    for number in range(rounds):
        for name, action, _ in (each for each in work if number < each.rounds):
            progress(f"round {number + 1} of {rounds}: {name}")
            prepare()
            spent = timed(action)
            wall[name].append(spent.seconds)
            cpu[name].append(spent.cpu)
    rows = {name: Row(name, "s", tuple(samples)) for name, samples in wall.items()}
    for name, samples in cpu.items():
        rows[f"{name}, processor"] = Row(f"{name}, processor", "s", tuple(samples))
    return rows


class Puller:
    """`hpcwrap pull` into an empty store."""

    def __init__(self, image: str, compression: str = "zstd") -> None:
        here = place.get()
        reference = place.push(image, here.registry)
        self.stages: Samples = {}
        self.store = f"cold-{image}-{compression}"
        config_file = place.write_settings(here.directory, reference, self.store, compression)
        self.argv = [sys.executable, "-m", "hpcwrap", "--config", config_file, "pull"]
        self.argv += ["--json", reference]

    def pull(self) -> None:
        """Run it, and keep what its stages took."""
        document = json.loads(run(self.argv, cwd=REPOSITORY))
        for stage, spent in document["milliseconds"].items():
            self.stages.setdefault(stage, []).append(spent / 1e3)

    def memory(self) -> Dict[str, float]:
        """The processes at its peak: program → MB."""
        self.clear()
        return peak_memory(self.argv, cwd=REPOSITORY)

    def clear(self) -> None:
        """Empty the store."""
        shutil.rmtree(place.get().path(self.store), ignore_errors=True)


class Bound:
    """The two programs that do the work, alone."""

    def __init__(self, layers: Sequence[str], merged: str, plan: Plan, output: str) -> None:
        self.merged = merged
        self.output = output
        self.decompress = ["igzip", "-dc", *layers]
        self.compress = squashfs.command(output, plan, Format())

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


def layers_of(image: str) -> List[str]:
    """The layers' files, lowest first."""
    layout = place.layout_of(image)
    raw = run(["skopeo", "inspect", "--raw", f"oci:{layout}"]).encode()
    blobs = manifest.parse_manifest(manifest.parse_document(raw)).layers
    return [os.path.join(layout, "blobs", *blob.digest.split(":")) for blob in blobs]


def write_merged(layers: Sequence[str], path: str) -> Plan:
    """Write the tar stream that hpcwrap gives to mksquashfs for these layers."""
    progress("merging the layers for the bound")
    views = [_plain(layer, f"{path}.layer") for layer in layers]
    plan = flatten([index_layer(view) for view in views])
    with open(path, "wb") as file:
        for segment in plan.segments:
            if isinstance(segment, bytes):
                file.write(segment)
            elif segment.layer == ZEROS:
                file.write(bytes(segment.end))
            else:
                file.write(views[segment.layer][segment.start : segment.end])
    return plan


def _plain(layer: str, path: str) -> memoryview:
    """A layer, decompressed into a file without a name."""
    with open(path, "w+b") as file:
        os.unlink(path)
        if spawn(["igzip", "-dc", layer], stdout=file).wait():
            raise BenchError(f"igzip cannot decompress {layer}")
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
