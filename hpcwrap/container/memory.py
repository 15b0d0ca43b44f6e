"""Shared memory of a job: /dev/shm of its own, where the host's is too small or too open."""

from __future__ import annotations

from hpcwrap.container.addition import Addition
from hpcwrap.container.operations import Tmpfs
from hpcwrap.environment import Machine

SHM = "/dev/shm"
OWN = "0"


def addition(wanted: Machine) -> Addition:
    """Plan /dev/shm: all ranks of the job on this node share it, whoever owns it."""
    if wanted.shm_size in (None, OWN):
        return Addition()
    options = (f"size={wanted.shm_size}", "mode=1777")
    return Addition(mounts=(Tmpfs(SHM, options, "shm_size"),))
