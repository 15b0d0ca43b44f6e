"""A container built for a test, and ways to run commands in it."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Callable, List, NamedTuple, Sequence

from hpcwrap import paths
from hpcwrap.container import syscalls
from hpcwrap.container.plan import Plan
from hpcwrap.job import User

ENTER = Path(__file__).parents[2] / "native" / "build" / "hpcwrap-enter"
ALICE = User("alice", 42001, 42001, (42001, 43001), "/home/alice", "/bin/sh")
BOB = User("bob", 42002, 42002, (42002,), "/home/bob", "/bin/sh")


class Ran(NamedTuple):
    """What a command inside said."""

    code: int
    stdout: str
    stderr: str


class Container:
    """A container built for a test, and ways to run commands in it."""

    def __init__(self, place: paths.JobPaths, plan: Plan, program: Path) -> None:
        self.place = place
        self.plan = plan
        self.program = program

    def run(self, *argv: str, user: User = ALICE, cwd: str = "/") -> Ran:
        """Join and run a command as a user: by hpcwrap-enter, or as slurmstepd does it."""
        join = self._by_program if self.plan.user_namespace else self._by_root
        return join(argv, user, cwd)

    def _by_program(self, argv: Sequence[str], user: User, cwd: str) -> Ran:
        """The user joins, without any privilege."""
        command: List[str] = [str(self.program), self.place.directory, "--", *argv]
        return run_as(command, user, cwd)

    def _by_root(self, argv: Sequence[str], user: User, cwd: str) -> Ran:
        """Root joins first and becomes the user then."""
        mount_namespace = os.open(self.place.mount_namespace, os.O_RDONLY)

        def become() -> None:
            syscalls.setns(mount_namespace, syscalls.CLONE_NEWNS)
            os.setgroups(list(user.groups))
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.chdir(cwd)

        done = subprocess.run(
            argv,
            preexec_fn=become,
            capture_output=True,
            text=True,
            timeout=20,
            env={"PATH": "/bin"},
        )
        os.close(mount_namespace)
        return Ran(done.returncode, done.stdout, done.stderr)


def make_squashfs(root: Path) -> Path:
    """Make an image of a tree, beside it."""
    path = root.parent / f"{root.name}.sqsh"
    subprocess.run(["mksquashfs", root, path, "-quiet", "-no-progress", "-all-root"], check=True)
    return path


def run_as(command: Sequence[str], user: User, cwd: str = "/") -> Ran:
    """Run a command on the host as a user of no privilege."""
    done = subprocess.run(
        command,
        user=user.uid,
        group=user.gid,
        extra_groups=list(user.groups),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=20,
        env={"PATH": "/usr/bin:/bin", "FROM_HOST": "yes"},
    )
    return Ran(done.returncode, done.stdout, done.stderr)


Make = Callable[..., Container]
Hostile = Callable[[str, str], Path]


def bound_files() -> List[str]:
    """Paths of all files that loop devices of this node are bound to."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # freed meanwhile
            found.append(path.read_text().rstrip("\n"))
    return found
