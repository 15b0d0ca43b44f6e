"""What the suite asks of every scheduler, in words of ours; a driver says them in its own.

A driver is `driver_NAME.py` whose DRIVER is a subclass of `Driver`.  What a scheduler cannot do its
driver says in CANNOT, by the words of FEATURES: those tests are skipped with that reason, and
docs/schedulers.md shows it.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from typing import ClassVar, Dict, List, Mapping, NamedTuple, Optional, Tuple

from cluster_site import NODES, ClusterSite, Ran

FEATURES: Mapping[str, str] = {
    "directive": "a line in the script names the container",
    "command line": "an option of the command line names it",
    "default": "a queue has a default, and a job may opt out of it",
    "refused at submission": "a wrong or forbidden name makes no job",
    "array": "each element of an array of jobs is inside",
    "interactive": "an interactive job is inside",
    "ranks": "1, 2 and 32 ranks on each node are inside one container",
    "mpi": "mpirun over several nodes has its ranks inside on each",
    "memory": "a job over its memory limit is killed, and told why in a sentence",
    "stdin": "a job reads the file that it was given as standard input",
    "workdir": "a job begins where it was submitted",
    "variables": "a job has the variables that it was given",
    "container in status": "`hpcwrap status` shows the container of each job",
    "signal": "the scheduler tells which signal ended a job",
}

LONG = 240.0
"""Seconds in which a job of the suite must have begun or ended, on a busy machine behind others
(volclava ends one job in 3 s)."""


class Ask(NamedTuple):
    """A job as a user wants it.

    `script` is what follows the directives, for /bin/sh of the image.  `container` is named in the
    script, with `on_line` on the command line.  `ranks` on each of `nodes`.  `array` elements are
    numbered from 1.  `memory` is a limit of the whole job on a node, in MiB.  `stdin` is the
    content of a file.  `workdir` is below alice's home.
    """

    script: str
    container: str = ""
    on_line: bool = False
    queue: str = ""
    nodes: int = 1
    ranks: int = 1
    array: int = 0
    memory: int = 0
    stdin: str = ""
    workdir: str = ""
    variables: Tuple[Tuple[str, str], ...] = ()


class Submission(NamedTuple):
    """What became of a submission: without an id it was refused, and `said` says why.

    `name` is that of its files in the user's home: NAME.out, NAME.err, for an array NAME.out.1 ….
    """

    id: str
    said: str
    name: str
    array: int = 0


class Ended(NamedTuple):
    """A job that has ended; `code` is negative for the signal that ended it.

    `outputs` is the output of each element of an array, or the one of the job.
    """

    code: int
    outputs: Tuple[str, ...]
    errors: str

    @property
    def output(self) -> str:
        """All output."""
        return "".join(self.outputs)

    @property
    def said(self) -> str:
        """Everything that the user gets to see, whatever file the scheduler has it in."""
        return self.output + self.errors


class Driver(ClusterSite, ABC):
    """One scheduler, with its cluster."""

    NAME: str
    """The scheduler, as tools/cluster and `hpcwrap setup` name it."""

    DIRECTIVE: str
    """The line of a script that names the container {}, as the guide shows it."""

    LINE: str
    """The option of the command line that names the container {}, as the guide shows it."""

    DEFAULT_QUEUE: str = "containers"
    """The queue whose jobs get busybox-1 when they name none."""

    CANNOT: ClassVar[Mapping[str, str]] = {}
    """What of FEATURES this scheduler cannot, and why."""

    UNKNOWN: str
    """What a user is told who names `debain-12`; a pattern of re."""

    FORBIDDEN: str
    """What alice is told who names `bobs`; a pattern of re."""

    def __init__(self, state: str) -> None:
        super().__init__(state, self.NAME)
        self._numbers = itertools.count(1)
        self._stamp = time.monotonic_ns()

    # ---- what each scheduler does its own way ----

    @abstractmethod
    def submit(self, ask: Ask) -> Submission:
        """Submit a job as alice."""

    @abstractmethod
    def has_ended(self, submission: Submission) -> bool:
        """Whether the job, or every element of an array, has ended and its files are there."""

    @abstractmethod
    def code(self, submission: Submission) -> int:
        """The exit code of a job that has ended, as the scheduler has it; -N for signal N."""

    @abstractmethod
    def cancel(self, submission: Submission) -> None:
        """Kill a job, as its user would."""

    @abstractmethod
    def interactive(self, container: str, stdin: str) -> Ran:
        """Run a shell, which the image has, in an interactive job, with this input; its output."""

    @abstractmethod
    def each_rank(self, command: str, ranks: int) -> str:
        """A line of a script that runs a command of the shell so many times on each of its nodes.

        The command has double quotes and $ in it, and no single quotes.
        """

    @abstractmethod
    def mpirun(self, program: str) -> str:
        """A line of a script that starts an MPI program on all nodes of the job by mpirun.

        The program is Open MPI's, in the image debian-12.
        """

    @abstractmethod
    def go_round(self, script: str) -> Submission:
        """Submit a job whose container is not there in a way that no filter stops."""

    @abstractmethod
    def trouble(self) -> str:
        """What keeps a node or a queue from taking jobs; empty when all are in service."""

    # ---- what all have in common ----

    def prepare(self) -> None:
        """Environments of the suite: another's, one without an image, and one that is gone.

        Filters know the last, so that a job with it gets as far as the node.
        """
        self.write_environment("fleeting", "image: registry:5000/busybox-1:latest\n")
        self.write_environment("bobs", "image: registry:5000/busybox-1:latest\nusers: [bob]\n")
        self.write_environment("unpullable", "image: registry:5000/no-such-image:latest\n")
        self.write_environment("mountless", "base: busybox-1\nmounts: [/no/such/place]\n")
        self.tell_scheduler()
        self.remove_environment("fleeting")

    def forget(self) -> None:
        """Tell the scheduler which environments there are now, wherever it has been told."""
        self.tell_scheduler()

    def new_name(self) -> str:
        """A name for a job's files in alice's home."""
        return f"job-{self._stamp}-{next(self._numbers)}"

    def write_input(self, name: str, ask: Ask) -> str:
        """Make the file that the job is to read; its path, empty for none."""
        if not ask.stdin:
            return ""
        self.alice("tee", f"{name}.in", stdin=ask.stdin)
        return f"/home/alice/{name}.in"

    def directives(self, ask: Ask) -> str:
        """The script's line for the container, if it is to be named there."""
        named = ask.container and not ask.on_line
        return f"{self.DIRECTIVE.format(ask.container)}\n" if named else ""

    def options(self, ask: Ask) -> List[str]:
        """The words of the command line for the container, if it is to be named there."""
        return self.LINE.format(ask.container).split() if ask.container and ask.on_line else []

    def wait(self, submission: Submission) -> Ended:
        """Wait for a job's end."""
        assert submission.id, submission.said
        assert self.eventually(lambda: self.has_ended(submission), LONG), submission
        return Ended(self.code(submission), self.outputs(submission), self.errors(submission))

    def run(self, ask: Ask) -> Ended:
        """Submit a job and wait for its end."""
        return self.wait(self.submit(ask))

    def begin(self) -> Tuple[Submission, str, str]:
        """Start a job in busybox-1; with its node, and the file whose removal ends it."""
        mark = f"{self.new_name()}.on"
        script = f"uname -n >{mark}; while [ -e {mark} ]; do sleep 0.2; done\n"
        submission = self.submit(Ask(script, "busybox-1"))
        assert self.eventually(lambda: self.alice("cat", mark).stdout != "", LONG), submission
        return submission, self.alice("cat", mark).stdout.strip(), mark

    def outputs(self, submission: Submission) -> Tuple[str, ...]:
        """The output of the job, or of each element of an array."""
        return tuple(self._texts(submission, "out"))

    def errors(self, submission: Submission) -> str:
        """The standard error of the job, or of all of an array."""
        return "".join(self._texts(submission, "err"))

    def _texts(self, submission: Submission, kind: str) -> List[str]:
        name = f"{submission.name}.{kind}"
        numbers = range(1, submission.array + 1)
        names = [f"{name}.{number}" for number in numbers] if submission.array else [name]
        return [self.alice("cat", each).stdout for each in names]

    def host_namespaces(self) -> Dict[str, str]:
        """The mount namespace of each node's own processes."""
        look = ("readlink", "/proc/1/ns/mnt")
        return {node: self.root(node, *look).stdout.strip() for node in NODES}


class Batch:
    """Jobs that are submitted together when the first test asks for one of them."""

    def __init__(self, driver: Driver, asks: Mapping[str, Ask]) -> None:
        self.driver = driver
        self._asks = asks
        self._submissions: Dict[str, Submission] = {}
        self._ended: Dict[str, Ended] = {}

    def submission(self, name: str) -> Submission:
        """What became of the submission of a job."""
        if not self._submissions:
            self._submissions = {key: self.driver.submit(ask) for key, ask in self._asks.items()}
        return self._submissions[name]

    def __getitem__(self, name: str) -> Ended:
        """A job's end."""
        found: Optional[Ended] = self._ended.get(name)
        if found is None:
            found = self._ended[name] = self.driver.wait(self.submission(name))
        print(found)
        return found
