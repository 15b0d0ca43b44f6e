"""What `hpcwrap top` measures, of processes in a real container."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Iterator, List

import pytest
from containers import ALICE, Container, Make

from hpcwrap import record, usage
from hpcwrap.container import build
from hpcwrap.verbs import top

pytestmark = pytest.mark.privileged
BUSY = "while :; do :; done"


@pytest.fixture
def container(make: Make) -> Container:
    """A container with a record."""
    made = make(user_namespace=True)
    about = record.Record(
        *("1", "slurm", "n1", "alice", "test", "--container", "test:1", "sha256:0"),
        started=time.time() - 65,
        milliseconds={},
    )
    record.write_record(made.place, about)
    return made


@pytest.fixture
def busy(container: Container) -> Iterator[List[subprocess.Popen[bytes]]]:
    """A process that sleeps in the container, and one that works."""
    enter = [str(container.program), container.place.directory, "--", "/bin/sh", "-c"]
    who = {"user": ALICE.uid, "group": ALICE.gid, "extra_groups": list(ALICE.groups)}
    children = [
        subprocess.Popen([*enter, command], cwd="/", **who) for command in (BUSY, "sleep 100")
    ]
    yield children
    for child in children:
        child.kill()
        child.wait()


def test_processes_are_found_by_their_namespace(
    container: Container,
    busy: List[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = os.path.dirname(container.place.directory)
    (known,) = usage.pinned(jobs).values()
    assert (known.job, known.user, known.container) == ("1", "alice", "test@sha256:0")
    found = usage.pinned(jobs)
    monkeypatch.setattr(usage, "pinned", lambda: found)
    meter = usage.Meter()
    for _ in range(100):
        time.sleep(0.1)
        (job,) = meter.look()
        if job.processes >= len(busy) and job.cpu > 0:
            break
    assert job.processes >= len(busy)
    assert 0 < job.cpu <= (os.cpu_count() or 1) + 1
    assert 4096 < job.memory < 1 << 30
    assert top.node_row(job)[:3] == ["1", "alice", "test@0"]


def test_a_job_that_has_ended_is_gone(container: Container, tmp_path: Path) -> None:
    jobs = os.path.dirname(container.place.directory)
    build.release(container.place)
    record.remove(container.place)
    assert usage.pinned(jobs) == {}
    assert usage.pinned(str(tmp_path / "nowhere")) == {}
