"""What `hpcwrap enter` reads of Slurm, and says to it."""

import os

import pytest

from hpcwrap.config import Settings
from hpcwrap.schedulers import slurm_enter
from hpcwrap.schedulers.slurm_enter import FIELDS, Running, parse_job

VALUES = ("7", "2001", "RUNNING", "n[1-2]", "done by hand hpcwrap=debian-12@sha256:ab")


def line(*values: str) -> str:
    """As squeue(1) writes it."""
    return "".join(value.ljust(width) for value, (_, width) in zip(values, FIELDS))


def test_a_line_of_squeue_is_read_by_its_widths() -> None:
    found = parse_job(line(*VALUES))
    assert found == Running("7", "2001", "RUNNING", ("n1", "n2"), "debian-12@sha256:ab")


@pytest.mark.parametrize("comment", ["", "(null)", "hpcwrap=none", "hpcwrap"])
def test_a_job_without_a_container(comment: str) -> None:
    assert parse_job(line(*VALUES[:4], comment)).container == ""


def test_a_step_takes_nothing_from_the_others(tmp_path: "os.PathLike[str]") -> None:
    srun = os.path.join(tmp_path, "srun")
    with open(srun, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o755)
    settings = Settings()._replace(slurm_commands=str(tmp_path))
    words = slurm_enter.step(parse_job(line(*VALUES)), "n2", ["top"], settings, terminal=True)
    assert words[:3] == [srun, "--jobid=7", "--nodelist=n2"]
    assert {"--overlap", "--pty"} <= set(words)
    assert words[-1] == "top"
    assert "--pty" not in slurm_enter.step(
        parse_job(line(*VALUES)), "n2", ["top"], settings, terminal=False
    )


def test_what_speaks_of_another_job_is_forgotten() -> None:
    cleaned = slurm_enter.clean(
        {"SLURM_JOB_ID": "3", "SLURM_CONF": "/x", "PMIX_RANK": "0", "HOME": "/home/alice"}
    )
    assert cleaned == {"SLURM_CONF": "/x", "HOME": "/home/alice"}
