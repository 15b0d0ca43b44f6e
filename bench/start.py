"""One container, made and dropped as `hpcwrap run` does it, operation by operation."""

from __future__ import annotations

import importlib
import time
from typing import Any, Dict, List, Optional

from bench import place, stages
from bench.model import Result, Row
from bench.processes import progress
from hpcwrap import prolog

ROUNDS = 50
WARM_UP = 3
WHOLE, DROP = "prolog, whole", "epilog, whole"


def measure(rounds: Optional[int]) -> Result:
    """Time the steps of so many containers, one after the other, in one process."""
    place.get_image()
    progress(f"making {rounds or ROUNDS} containers")
    samples = place.apart(lambda: time_all(rounds or ROUNDS))
    return Result(
        "making one container of an image that is in the store, step by step",
        [Row(step, "ms", tuple(spent)) for step, spent in samples.items()],
        notes=(
            "within one running Python: no start of an interpreter, no imports",
            "the image is bound to a loop device anew each time: no other job uses it",
        ),
    )


def time_all(rounds: int) -> Dict[str, Any]:
    """Step → samples in ms; in a mount namespace of our own."""
    samples: Dict[str, List[float]] = {WHOLE: [], DROP: []}
    recorder = stages.Recorder()
    for module, name, step in stages.STEPS[1:-1]:
        recorder.wrap(importlib.import_module(module), name, step)
    recorder.watch_operations(prolog)
    for number in range(WARM_UP + rounds):
        steps = time_one(str(number), recorder)
        if number >= WARM_UP:
            for step, spent in steps.items():
                samples.setdefault(step, []).append(spent)
    return samples


def time_one(job_id: str, recorder: stages.Recorder) -> Dict[str, float]:
    """Make and drop one container."""
    begin = time.perf_counter()
    job = place.prepare(job_id)
    made = time.perf_counter()
    place.end_job(job)
    end = time.perf_counter()
    return {WHOLE: (made - begin) * 1e3, DROP: (end - made) * 1e3, **recorder.document()}
