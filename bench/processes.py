"""Commands: to their end, in turn with others, with their processor time and their memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import IO, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

import psutil

REPOSITORY = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
LOOP = os.path.join(REPOSITORY, "bench", "loop.py")
PYTHON = "/usr/bin/python3"
MEMORY_TICK = 0.02


class BenchError(Exception):
    """A benchmark that could not be run: one sentence."""


class Command(NamedTuple):
    """One of the commands that are timed in turn; without `env` it has that of loop.py."""

    name: str
    argv: Sequence[str]
    env: Optional[Mapping[str, str]] = None
    cwd: str = "/"


class Spent(NamedTuple):
    """What a command took: wall and processor time of it and its children, in s."""

    seconds: float
    cpu: float


Stream = Optional[IO[bytes]]
Samples = Dict[str, Dict[str, List[float]]]


def run(argv: Sequence[str], **options: Any) -> str:
    """Run a command to its end; its stdout.  Raises BenchError with its last words."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise BenchError(f"{argv[0]} ended with exit code {done.returncode}: {words}")
    return done.stdout


def spawn(
    argv: Sequence[str], stdin: Stream = None, stdout: Stream = None
) -> subprocess.Popen[bytes]:
    """Start a command whose streams are /dev/null unless given; the caller waits for it."""
    null = subprocess.DEVNULL
    return subprocess.Popen(argv, stdin=stdin or null, stdout=stdout or null)


def in_turn(
    commands: Sequence[Command],
    rounds: int,
    *,
    warm_up: int = 5,
    turn: bool = True,
    through: Sequence[str] = (),
    uid: Optional[int] = None,
) -> Samples:
    """Time commands in turn with loop.py: as a user, or through another command (`nsenter …`)."""
    wanted = {
        "rounds": rounds,
        "warm_up": warm_up,
        "turn": turn,
        "commands": [command._asdict() for command in commands],
    }
    with open(LOOP, encoding="utf-8") as file:
        source = file.read()
    identity = {} if uid is None else {"user": uid, "group": uid, "extra_groups": [uid]}
    argv = [*through, PYTHON, "-I", "-c", source, json.dumps(wanted)]
    return dict(json.loads(run(argv, **identity)))


def milliseconds(samples: Samples, kind: str = "ms") -> Dict[str, List[float]]:
    """The wall times, or with "cpu" the processor times."""
    return {name: times[kind] for name, times in samples.items()}


def timed(work: Callable[[], object]) -> Spent:
    """Time a piece of work; processor time is that of the children that it waited for."""
    before, start = _children(), time.perf_counter()
    work()
    return Spent(time.perf_counter() - start, _children() - before)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def peak_memory(argv: Sequence[str], **options: Any) -> Dict[str, float]:
    """Run a command; what it and its children had resident when that was most: program → MB.

    Sampled, without the pages that several of them share as files (smaps would slow them down).
    """
    peak: Dict[str, float] = {}
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, **options) as child:
        while child.poll() is None:
            peak = max(peak, _resident(child.pid), key=lambda parts: sum(parts.values()))
            time.sleep(MEMORY_TICK)
    if child.returncode:
        raise BenchError(f"{argv[0]} failed with exit code {child.returncode}")
    return peak


def _resident(pid: int) -> Dict[str, float]:
    parts: Dict[str, float] = {}
    try:
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            memory = process.memory_info()
            name = process.name()
            parts[name] = parts.get(name, 0) + (memory.rss - memory.shared) / 1e6
    except psutil.Error:
        pass  # one of them has just ended: the next look is as good
    return parts


def progress(text: str) -> None:
    """Say what is being done, for people who wait."""
    print(f"  {text} …", file=sys.stderr, flush=True)
