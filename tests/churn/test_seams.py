"""A prolog killed before each of its system calls: what comes next mends what it left.

strace(1) does it, `--inject=CALL:signal=KILL:when=N`: the prolog itself is not changed for it.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, NamedTuple, Set, Tuple

import census
import pytest
from fournodes import NODES, FourNodes

pytestmark = pytest.mark.slurm

CALLS = (
    *("mount", "umount2", "unshare", "pivot_root", "open_tree", "move_mount", "mount_setattr"),
    *("mkdir", "mkdirat", "rename", "symlink", "symlinkat", "link", "unlink", "unlinkat", "rmdir"),
    *("ioctl", "fcntl", "flock", "clone", "fork", "vfork", "pipe2", "wait4", "sched_setaffinity"),
    *("chmod", "fchmod", "fchown", "mknodat", "write"),
)
"""Those that change something; the rest only look."""

HARMLESS = re.compile(r"ioctl\(.*TCGETS|fcntl\(.*F_GETFD")
"""Calls by these names that change nothing: how Python opens files and starts."""

MOST = int(os.environ.get("HPCWRAP_SEAMS", "5"))
"""How often a call is broken at most, spread over all the times it is made."""

FIRST_JOB = 900_000
"""The id of the first job here: no job of Slurm's comes so far."""

PROLOG = 'python3 -I -c \'from hpcwrap.hook import main; main("prolog", "slurm")\''
SCRIPT = """
prefix=/opt/hpcwrap
export SLURM_JOB_ID={job} SLURM_JOB_UID=2001 SLURM_JOB_GID=2001 SLURM_JOB_USER=alice
export SLURM_JOB_PARTITION=main SLURMD_NODENAME={node} SPANK_HPCWRAP_CONTAINER=red
strace {options} -o /tmp/seam-{job} $prefix/bin/{prolog} 2>/tmp/said-{job}
code=$?
grep -q 'killed by SIGKILL' /tmp/seam-{job} && echo killed
{again}
$prefix/share/hpcwrap/epilog/slurm.sh || echo the epilog failed
echo ended with $code
"""
AGAIN = """
$prefix/share/hpcwrap/prolog/slurm.sh || echo the prolog failed
[ -e /run/hpcwrap/jobs/$SLURM_JOB_ID/entry ] || echo the next prolog made nothing
"""


class Seam(NamedTuple):
    """The moment before the number-th time that a process makes a call."""

    call: str
    number: int
    children: bool


class Broken(NamedTuple):
    """Whether a process was killed there, and what went wrong after it."""

    killed: bool
    wrong: List[str]


def trace(four: FourNodes, node: str, job: int, options: str, again: str = "") -> str:
    """Run a prolog under strace and the epilog after it; what they said."""
    words = {"job": job, "node": node, "options": options, "prolog": PROLOG, "again": again}
    return four.run(node, "sh", "-c", SCRIPT.format(**words))


def find_seams(four: FourNodes, *, children: bool) -> List[Seam]:
    """Seams of a prolog, from what each of its processes does when it is left alone."""
    follow = "-f" if children else ""
    trace(four, "n1", FIRST_JOB, f"{follow} -e trace={','.join(CALLS)}")
    lines = four.run("n1", "cat", f"/tmp/seam-{FIRST_JOB}").splitlines()
    numbers = count_calls(lines)
    return [Seam(call, n, children) for call in numbers for n in spread(sorted(numbers[call]))]


def count_calls(lines: List[str]) -> Dict[str, Set[int]]:
    """Call → its numbers, in any process, that do something; strace counts in each of its own."""
    made: Dict[Tuple[str, str], int] = defaultdict(int)
    numbers: Dict[str, Set[int]] = defaultdict(set)
    for line in lines:
        found = re.match(r"(\d*) *(\w+)\(", line)
        if found:
            made[found.group(1, 2)] += 1
            if not HARMLESS.search(line):
                numbers[found[2]].add(made[found.group(1, 2)])
    return numbers


def spread(numbers: List[int]) -> List[int]:
    """The first, the last, and some between them."""
    if len(numbers) <= MOST:
        return numbers
    return [numbers[(len(numbers) - 1) * n // (MOST - 1)] for n in range(MOST)]


def break_at(four: FourNodes, seam: Seam, node: str, job: int) -> Broken:
    """Kill a prolog there, and see what comes after it."""
    follow = "-f" if seam.children else ""
    options = f"{follow} -e trace={seam.call} -e inject={seam.call}:signal=KILL:when={seam.number}"
    said = trace(four, node, job, options, AGAIN if job % 2 else "").split("\n")
    killed = "killed" in said
    wrong = [line for line in said if line != "killed" and not line.startswith("ended with ")]
    return Broken(killed, [f"{seam}: {line}" for line in wrong if line])


@pytest.mark.parametrize("children", [False, True], ids=["prolog", "builder"])
def test_a_prolog_killed_at_any_step(four: FourNodes, children: bool) -> None:
    for node in NODES:
        assert trace(four, node, FIRST_JOB, "-qq -e trace=none").endswith("ended with 0\n")
    seams = find_seams(four, children=children)
    assert {"mount", "rename", "mkdir"} <= {seam.call for seam in seams}

    def share(number: int) -> List[Broken]:
        """One node's seams."""
        first = FIRST_JOB + number * 1000
        mine = enumerate(seams[number :: len(NODES)], start=first)
        return [break_at(four, seam, NODES[number], job) for job, seam in mine]

    with ThreadPoolExecutor(len(NODES)) as pool:
        broken = [each for found in pool.map(share, range(len(NODES))) for each in found]
    print(f"{len(broken)} seams, killed at {sum(each.killed for each in broken)}")
    assert [line for each in broken for line in each.wrong] == []
    # Not every run comes to every number: the first writes a snapshot of the settings, and the
    # builder tries CPU after CPU.
    assert sum(each.killed for each in broken) > 0.75 * len(broken)
    assert four.eventually(lambda: not any(census.take(four).values())), census.take(four)
