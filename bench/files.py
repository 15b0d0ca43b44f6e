"""Reading files: of the local disk, inside ÷ outside; of the image ÷ the same file unpacked."""

from __future__ import annotations

import re
from typing import Dict, Optional, Tuple

from bench import cluster, inside
from bench.inside import INSIDE, WITHOUT
from bench.metadata import COLD, IMAGE, WARM
from bench.model import Result
from bench.processes import BenchError, run

ROUNDS = 8
LARGE = f"{inside.HOME}/large"
MIB = 512
OF_IMAGE = "usr/lib/x86_64-linux-gnu/libmpich.so.12.2.2"
DISK, FILE = "512 MiB of the disk", "40 MB of the image"


def measure(rounds: Optional[int]) -> Result:
    """dd in turn in two jobs of one node, with the file in memory and not."""
    inside.offer(IMAGE)
    tree = inside.unpack(IMAGE)
    inside.make_home()
    run([*cluster.as_user(), "sh", "-c", f"head -c {MIB}M /dev/urandom >{LARGE}"])
    files: Dict[Tuple[str, str], str] = {
        (DISK, WITHOUT): LARGE,
        (DISK, INSIDE): LARGE,
        (FILE, WITHOUT): f"{tree}/{OF_IMAGE}",
        (FILE, INSIDE): f"/{OF_IMAGE}",
    }
    try:
        with inside.jobs(IMAGE) as jobs:
            measures = {
                f"{what}, {state}, {where}": lambda file=file, where=where, state=state: read(
                    jobs[where], file, state
                )
                for state in (WARM, COLD)
                for (what, where), file in files.items()
            }
            rows = inside.rows_of(inside.in_turn(rounds or ROUNDS, measures), "MB/s")
    finally:
        inside.clean()
    goals = [inside.speed_goal(*pair) for pair in inside.pairs(rows)]
    return Result(
        "dd of a file on one node",
        rows,
        goals[:3],
        (
            "warm: the best of ten passes; ext4 has large folios in memory, squashfs single pages",
            "cold: one pass, the kernel's caches dropped; no goal for what is to be unpacked first",
        ),
        inside.baselines(rows),
    )


def read(job: str, file: str, state: str) -> float:
    """MB/s by dd's own clock: one pass of a cold file, the best of ten of a warm one."""
    if state == COLD:
        inside.drop_caches()
    passes = 1 if state == COLD else 10
    script = f"for _ in {'x ' * passes}; do dd if={file} of=/dev/null bs=1M; done"
    text = inside.step(job, ["sh", "-c", script])
    found = re.findall(r"(\d+) bytes .* copied, ([\d.e-]+) s", text)
    if len(found) != passes:
        raise BenchError(f"cannot read {file}: {text[-200:]}")
    return max(int(size) / float(time) for size, time in found) / 1e6
