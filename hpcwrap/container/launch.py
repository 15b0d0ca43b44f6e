"""Other nodes of the job, from inside: hpcwrap-launch, hpcwrap-sshd, and launchers that use them.

docs/decisions/0083 and 0084 say why.
"""

from __future__ import annotations

import os
from typing import List, Sequence, Tuple

from hpcwrap.container import rootfs
from hpcwrap.container.addition import Addition
from hpcwrap.container.operations import Bind, Operation, Tmpfs, Workshop
from hpcwrap.environment import Variable
from hpcwrap.job import User

DIRECTORY = "/.hpcwrap/bin"
PROGRAM = f"{DIRECTORY}/hpcwrap-launch"
SETTINGS = "/.hpcwrap/launcher"
KEYS = "/.hpcwrap/ssh"
READ_ONLY = ("ro", "nosuid", "nodev")

OPEN_MPI = ("OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent")
HYDRA = (
    ("HYDRA_LAUNCHER", "ssh"),
    ("HYDRA_LAUNCHER_EXEC", PROGRAM),
    ("I_MPI_HYDRA_BOOTSTRAP", "ssh"),
    ("I_MPI_HYDRA_BOOTSTRAP_EXEC", PROGRAM),
)


class LauncherFile:
    """What native/hpcwrap-launch reads: pairs of a verb and its argument, NUL-terminated.

    No NamedTuple: making one takes as long as everything else here, in each prolog.
    """

    def __init__(self, words: Sequence[str], nodes: Sequence[str], unset: Sequence[str]) -> None:
        self.words = words
        self.nodes = nodes
        self.unset = unset

    def describe(self) -> str:
        """Say how commands get to other nodes."""
        return f"launcher on other nodes: {' '.join(self.words)}"

    def execute(self, workshop: Workshop) -> None:
        """Write the file where the program looks for it."""
        rootfs.write_file(workshop.root, SETTINGS, self.content())

    def content(self) -> bytes:
        """The file: what to forget, the command line, the nodes."""
        pairs: List[Tuple[str, str]] = [("unset", name) for name in self.unset]
        pairs += [("word", word) for word in self.words]
        pairs += [("node", name) for name in self.nodes]
        return b"".join(os.fsencode(f"{verb}\0{value}\0") for verb, value in pairs)


def addition(
    launcher: LauncherFile,
    user: User,
    programs: Sequence[str],
    *,
    hydra: bool,
    defaults: Sequence[Tuple[str, str]] = (),
) -> Addition:
    """Plan the commands for other nodes: `programs` are hpcwrap's files on the host.

    With `hydra`, MPICH's and Intel MPI's mpirun use them too; else they have a way of their own.
    `defaults` are variables that a job has unless it says otherwise.
    """
    owner = (f"uid={user.uid}", f"gid={user.gid}", "mode=0700", "size=4m")
    operations: List[Operation] = [
        Bind(program, f"{DIRECTORY}/{os.path.basename(program)}", READ_ONLY, as_user=False)
        for program in programs
    ]
    variables = [Variable("default", name, PROGRAM) for name in OPEN_MPI]
    if hydra:
        variables += [Variable("default", name, value) for name, value in HYDRA]
    variables += [Variable("default", name, value) for name, value in defaults]
    variables.append(Variable("append", "PATH", DIRECTORY))
    return Addition(
        operations=(*operations, launcher, Tmpfs(KEYS, owner, "ssh keys of the job")),
        variables=tuple(variables),
    )
