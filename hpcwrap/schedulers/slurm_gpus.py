"""The GPUs that Slurm gave a job on this node, noted for its steps' own containers.

Only the job's prolog is told by slurmd; what a step says of GPUs is its user's word.  One file for
each job that has some, /run/hpcwrap/gpus/JOB, which epilog/slurm.sh removes.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Dict, Mapping

from hpcwrap import log, paths, record

VARIABLES = (
    *("SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"),
    "GPU_DEVICE_ORDINAL",
)
"""Which of them are set: Flags= of gres.conf(5)."""


def note(job: str, environ: Mapping[str, str], directory: str = paths.GPUS) -> None:
    """Note a job's GPUs; nothing for a job without, in place of what a requeued one had.

    Where that cannot be done, its steps' own containers have none.
    """
    said = {name: environ[name] for name in VARIABLES if name in environ}
    path = os.path.join(directory, job)
    try:
        if said:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            record.publish(path, json.dumps(said).encode(), 0o600)
        elif os.path.exists(path):
            os.unlink(path)
    except OSError as error:
        log.warn(f"cannot note the GPUs of job {job}: {error}")


def noted(job: str, directory: str = paths.GPUS) -> Dict[str, str]:
    """The variables that the job's prolog had; empty for none."""
    with suppress(OSError, ValueError), open(os.path.join(directory, job), "rb") as file:
        said = json.load(file)
        return {name: str(said[name]) for name in VARIABLES if name in said}
    return {}
