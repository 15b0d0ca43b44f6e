"""What a churn is made of, dealt from one seed: jobs of all kinds, and what is done to them."""

from __future__ import annotations

import random
from typing import Dict, List, NamedTuple, Sequence, Set, Tuple

IMAGES = ("red", "blue")
"""Environments that run; their images have their names in /churn-image."""

HOST = "HOST"
NOWHERE = "NOWHERE"
MARK = (
    "if [ -e /etc/churn-host ]; then image=HOST; "
    "elif ! read -r image 2>/dev/null </churn-image; then image=NOWHERE; fi; "
    'echo "churn $image"'
)
"""Tells where it runs, in words that no environment variable has a say in."""

USERS = ("alice", "bob")
ARRAY = 3


class Kind(NamedTuple):
    """A kind of job: how often, its options, and the script after the mark; {nap} are seconds."""

    weight: int
    script: str
    options: Tuple[str, ...] = ()


OWN_STEP = "srun --container={other} sh -c '{mark}; sleep {nap}'"

KINDS: Dict[str, Kind] = {
    "one": Kind(40, "sleep {nap}"),
    "steps": Kind(14, "srun sh -c '{mark}; sleep {nap}'", ("-n2",)),
    "nodes": Kind(10, "srun sh -c '{mark}; sleep {nap}'", ("-N{nodes}",)),
    "array": Kind(6, "sleep {nap}", (f"--array=1-{ARRAY}",)),
    "requeue": Kind(
        4, '[ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] || scontrol requeue $SLURM_JOB_ID; sleep {nap}'
    ),
    "long": Kind(6, "sleep 10"),
    "srun": Kind(4, "sleep {nap}", ("-n2",)),
    "own step": Kind(10, OWN_STEP, ("-n2",)),
    "own step of the host's": Kind(5, OWN_STEP, ("-N2",)),
    "fails": Kind(4, "sleep {nap}; exit 7"),
    "no command": Kind(2, "srun no-such-command"),
    "host": Kind(4, "sleep {nap}"),
    "broken": Kind(2, "sleep {nap}"),
    "missing": Kind(2, "sleep {nap}"),
    "forbidden": Kind(2, "sleep {nap}"),
}
"""The last three can have no container: an image that is no image, none, and one of another's."""

BAD = ("broken", "missing", "forbidden")
OWN = ("own step", "own step of the host's")
BARE = ("host", "own step of the host's")
"""Kinds whose step is in another container than the job, and whose job is in none."""


class Work(NamedTuple):
    """One submission; `container` is the environment, empty for a job of the host's.

    `other` is that of a step which has one of its own.
    """

    number: int
    kind: str
    user: str
    container: str
    other: str
    options: Tuple[str, ...]
    script: str
    jobs: int

    @property
    def name(self) -> str:
        """The job's name, by which all that Slurm says of it is found."""
        return f"churn-{self.number}"

    @property
    def expected(self) -> Set[str]:
        """What its marks are to say, all of it if it ends well; nothing where it must not run."""
        own = {self.other} if self.other else set()
        return set() if self.kind in BAD else {self.container or HOST} | own


class Blow(NamedTuple):
    """Something done to the cluster after so many jobs; `after` s of sight, `share` picks whom."""

    at: int
    kind: str
    after: float
    share: float


BLOWS = {
    "cancel": 10,
    "kill prolog": 25,
    "kill epilog": 50,
    "kill slurmd": 60,
    "kill slurmstepd": 80,
    "collect garbage": 100,
    "reboot": 120,
}
"""One of a kind for so many jobs."""

DELAYS = {"kill prolog": 0.06, "kill epilog": 0.05, "kill slurmd": 2.0}
"""How long after its start something is killed at most, s; of slurmd, how long it stays away."""


class Deck(NamedTuple):
    """A churn."""

    works: List[Work]
    blows: List[Blow]


def deal(seed: int, jobs: int) -> Deck:
    """At least so many jobs, and the blows in their order; the same for the same numbers."""
    chance = random.Random(seed)
    works: List[Work] = []
    while sum(work.jobs for work in works) < jobs:
        works.append(deal_one(chance, len(works) + 1))
    return Deck(works, sorted(deal_blows(chance, jobs)))


def deal_one(chance: random.Random, number: int) -> Work:
    """One job."""
    (name,) = chance.choices(list(KINDS), [kind.weight for kind in KINDS.values()])
    kind = KINDS[name]
    container = chance.choice(IMAGES)
    other = next(image for image in IMAGES if image != container) if name in OWN else ""
    user = chance.choice(USERS)
    words = {
        "other": other,
        "nap": f"{chance.uniform(0, 2):.1f}",
        "nodes": str(chance.randint(2, 4)),
        "mark": MARK,
    }
    if name in BAD:
        container = name
    if name in BARE:
        container = ""
    if name == "forbidden":
        user = "alice"
    options = tuple(option.format(**words) for option in kind.options)
    script = f"{MARK}\n{kind.script.format(**words)}\n"
    jobs = ARRAY if name == "array" else 1
    return Work(number, name, user, container, other, options, script, jobs)


def deal_blows(chance: random.Random, jobs: int) -> Sequence[Blow]:
    """Blows at random moments, of each kind at least one; in the last fifth, all may recover."""
    return [
        Blow(
            chance.randint(1, jobs * 4 // 5),
            kind,
            chance.uniform(0, DELAYS.get(kind, 0)),
            chance.random(),
        )
        for kind, each in BLOWS.items()
        for _ in range(max(1, jobs // each))
    ]
