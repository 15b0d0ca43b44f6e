"""Images with an MPI each, and one program of the host's compiler for each MPI."""

from __future__ import annotations

import subprocess
from typing import Sequence

from site_tools import REPOSITORY, Ran, Site

# Debian's openmpi-common of sid has btl_tcp_if_include=lo in /etc/openmpi/openmpi-mca-params.conf.
ENVIRONMENT = """\
image: registry:5000/{}:latest
variables:
  set: {{OMPI_MCA_btl_tcp_if_include: 10.77.0.0/24}}
"""
PROGRAM = REPOSITORY / "tools" / "imagelib" / "programs" / "mpi-hello.c"
LINE_BUFFERED = REPOSITORY / "tests" / "slurm" / "line_buffered.c"


def add_images(site: Site, *names: str) -> None:
    """Push images of tools/image, and make an environment of each, and one with the host's MPI."""
    for name in names:
        site.need("image", "push", name)
        site.add_environment(name, ENVIRONMENT.format(name))
        site.add_environment(f"{name}-host", f"base: {name}\nmpi: host\n")


def compile_program(site: Site, mpi: str) -> str:
    """Compile hello-MPI into alice's home, against the host's `mpi`; the command to call it."""
    path = f"{site.state}/home/alice/hello-{mpi}"
    sources = [str(PROGRAM), str(LINE_BUFFERED)]
    subprocess.run([f"mpicc.{mpi}", "-O2", "-o", path, *sources], check=True)
    return f"/home/alice/hello-{mpi}"


def srun(site: Site, environment: str, pmi: str, *command: str, ranks: int = 4) -> Ran:
    """Run ranks on both nodes, for two minutes at most.

    Debian's MPICH 4.0.2 hangs in MPI_Finalize now and then, on hosts, too; what the ranks had to
    say is written by then, and a hang before it is a sentence that is missing.
    """
    options: Sequence[str] = ("-N2", f"-n{ranks}", f"--mpi={pmi}", f"--container={environment}")
    return site.alice("srun", "--time=2", *options, *command)


def found_each_other(ran: Ran, ranks: int = 4) -> bool:
    """True when all ranks were ranks of one program and could speak to each other."""
    right = ranks * (ranks - 1) // 2
    return f"the ranks of {ranks} processes add up to {right}: right" in ran.stdout
