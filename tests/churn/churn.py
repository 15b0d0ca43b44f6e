"""Churn: many jobs of all kinds on four nodes while things die, and then a count of what is left.

make churn                                   2 000 jobs
make churn CHURN="--jobs 300 --seed 7"

`Churn.run` is the story.  The exit code is 1 when a promise was broken; each one is told.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple

HERE = Path(__file__).resolve().parent
for place in ("", "..", "../slurm", "../../tools"):
    sys.path.insert(0, str((HERE / place).resolve()))

import census  # noqa: E402  (the path has to be set first)
import mischief  # noqa: E402
from deck import BAD, Deck, Work, deal  # noqa: E402
from fournodes import NODES, FourNodes, Row  # noqa: E402

STATE = "/var/tmp/hpcwrap-churn"
AT_ONCE = 12
"""Submissions in a row."""

WAITING = 40
"""Jobs that may wait or run before more are submitted."""

LOOK = 0.5
"""Seconds from one look to the next."""

OVERDUE = 30
"""Seconds after which a job that sleeps for 10 is lost, and Slurm has not noticed: after a reboot
it looks at jobs only that began half a minute before (slurmctld, _purge_missing_jobs)."""

WAKING = 10.0
"""Seconds before a requeued job is told again to begin."""

PATIENCE = 300.0
"""Seconds for the last jobs to end by themselves; what is left then is cancelled."""

SETTLING = 60.0
"""Seconds for what ends by itself after the last job: orphans of a killed slurmstepd, say."""


class Report(NamedTuple):
    """What came of a churn; counts by word, and what is wrong."""

    seed: int
    jobs: int
    seconds: float
    kinds: Dict[str, int]
    states: Dict[str, int]
    blows: Dict[str, int]
    marks: Dict[str, int]
    sentences: Dict[str, int]
    peak: Dict[str, int]
    left: Dict[str, List[str]]
    drained: List[str]
    doctor: List[str]
    broken: List[str]

    @property
    def is_well(self) -> bool:
        """Whether every promise was kept."""
        return not (any(self.left.values()) or self.drained or self.doctor or self.broken)


class Churn:
    """One churn on a cluster that is up."""

    def __init__(self, site: FourNodes, seed: int, jobs: int) -> None:
        self.site = site
        self.seed = seed
        self.deck: Deck = deal(seed, jobs)
        self.blows: Counter[str] = Counter()
        self.submitted: List[Work] = []
        self.refused: List[int] = []
        self.rows: List[Row] = []
        self.woken: Dict[str, float] = {}
        self.peak: Dict[str, int] = {}
        self.began = time.monotonic()

    def run(self) -> Report:
        """Submit and strike, wait, count, and see that every node still runs jobs."""
        blows = list(self.deck.blows)
        for works in batches(self.deck.works):
            self.wait_for(WAITING)
            self.refused += self.site.submit_all(works)
            self.submitted += works
            while blows and blows[0].at <= count(self.submitted):
                self.strike(blows.pop(0))
            self.look()
        self.finish()
        return self.report()

    def strike(self, blow: mischief.Blow) -> None:
        """Do one thing to the cluster."""
        said(f"{len(self.blows)}: {blow.kind}")
        self.blows[blow.kind] += mischief.strike(self.site, blow)

    def look(self) -> None:
        """Count what there is now: a count that never sees anything proves nothing at the end."""
        for kind, found in census.take(self.site).items():
            self.peak[kind] = max(self.peak.get(kind, 0), len(found))

    # ---- waiting ----

    def wait_for(self, most: int) -> bool:
        """Wait until no more jobs than that are left; whether that came to be in time."""
        until = time.monotonic() + PATIENCE
        while self.left() > most:
            if time.monotonic() > until:
                return False
            time.sleep(LOOK)
        return True

    def left(self) -> int:
        """How many jobs have not ended, or are still on their way to Slurm (srun's)."""
        rows = self.alive()
        there = {row.name for row in self.rows}
        away = [work for work in self.submitted if work.name not in there]
        return len(rows) + sum(work.number not in self.refused for work in away)

    def alive(self) -> List[Row]:
        """Jobs that have not ended; those that were requeued are not to wait for two minutes."""
        self.rows = self.site.queue()
        rows = [row for row in self.rows if not row.ended]
        for row in rows:
            if row.state == "PENDING" and row.reason == "BeginTime":
                self.wake(row.id)
            if row.state == "RUNNING" and row.seconds >= OVERDUE:
                self.blows["cancel a lost one"] += 1
                self.site.run("ctl", "scancel", row.id, check=False)
        return rows

    def wake(self, job: str) -> None:
        """Let a job that was requeued begin soon; once in a while, for each time moves it on.

        Not at once: within a second, slurmd still takes it for the job that it has just killed.
        """
        if time.monotonic() > self.woken.get(job, 0.0) + WAKING:
            self.woken[job] = time.monotonic()
            words = ("scontrol", "update", f"JobId={job}", "StartTime=now+2")
            self.site.run("ctl", *words, check=False)

    def finish(self) -> None:
        """Wait for the end of all; cancel what does not come to one."""
        if not self.wait_for(0):
            ids = [row.id for row in self.alive()]
            self.blows["cancel at the end"] += len(ids)
            self.site.run("ctl", "scancel", *ids, check=False)
            self.wait_for(0)

    # ---- the count ----

    def report(self) -> Report:
        """All counts; nothing is repaired before they are taken."""
        last = self.last_job()
        self.settle()
        outputs = self.site.outputs()
        lines = [line for each in outputs.values() for line in each]
        return Report(
            seed=self.seed,
            jobs=count(self.deck.works),
            seconds=round(time.monotonic() - self.began, 1),
            kinds=Counter(work.kind for work in self.deck.works for _ in range(work.jobs)),
            states=Counter(row.state for row in self.rows),
            blows=self.blows,
            marks=Counter(marks(lines)),
            sentences=Counter(sentences(lines)),
            peak=self.peak,
            left=census.take(self.site),
            drained=self.site.drained(),
            doctor=self.findings(),
            broken=[*last, *self.wrongly_let_in(), *self.broken_promises(outputs)],
        )

    def broken_promises(self, outputs: Mapping[int, List[str]]) -> List[str]:
        """What went wrong with the jobs, by what Slurm says of them and what they wrote."""
        rows = by_number(self.rows)
        return [
            fault
            for work in self.deck.works
            for fault in faults(work, rows.get(work.number, []), outputs.get(work.number, []))
        ]

    def settle(self) -> None:
        """Wait for what ends by itself."""
        until = time.monotonic() + SETTLING
        while any(census.take(self.site).values()) and time.monotonic() < until:
            time.sleep(LOOK)

    def findings(self) -> List[str]:
        """What doctor finds on the nodes."""
        found = [(node, each) for node in NODES for each in self.site.doctor(node)]
        return [f"{node}: {each['file']} {each['what']}: {each['detail']}" for node, each in found]

    def wrongly_let_in(self) -> List[str]:
        """Submissions that should have been refused and were not."""
        asked = [work for work in self.deck.works if work.kind == "forbidden"]
        return [f"{work.name} was not refused" for work in asked if work.number not in self.refused]

    def last_job(self) -> List[str]:
        """One job more, of all nodes: each still makes containers.

        What a boot ended goes with the next job there, so that this comes before the count.
        """
        words = ("srun", "-N4", "--time=1", "--container=red", "cat", "/churn-image")
        ran = self.site.alice(*words)
        return [] if ran.stdout.split() == ["red"] * 4 else [f"the last job: {ran}"]


def batches(works: Sequence[Work]) -> List[Sequence[Work]]:
    """Works that are submitted in a row."""
    return [works[start : start + AT_ONCE] for start in range(0, len(works), AT_ONCE)]


def count(works: Sequence[Work]) -> int:
    """How many jobs they are."""
    return sum(work.jobs for work in works)


def by_number(rows: Sequence[Row]) -> Dict[int, List[Row]]:
    """Rows by the number of their work."""
    found: Dict[int, List[Row]] = {}
    for row in rows:
        stem, _, number = row.name.rpartition("-")
        if stem == "churn":
            found.setdefault(int(number), []).append(row)
    return found


def faults(work: Work, rows: Sequence[Row], lines: Sequence[str]) -> List[str]:
    """Which promises were broken to one work."""
    seen = set(marks(lines))
    found = [
        f"{work.name} ({work.kind}) ran in {mark} and not in {work.expected or 'nothing'}"
        for mark in seen - work.expected
    ]
    completed = sum(row.state == "COMPLETED" for row in rows)
    if work.kind in BAD and completed:
        found.append(f"{work.name} ({work.kind}) has no container, and ended well")
    if completed > len(marks(lines)) or (completed and work.expected - seen):
        found.append(f"{work.name} ({work.kind}) ended well, and has not run")
    if work.kind != "forbidden" and not rows:
        found.append(f"{work.name} ({work.kind}) was not taken")
    return found


def marks(lines: Sequence[str]) -> List[str]:
    """Where the jobs said that they ran."""
    return [line.split()[1] for line in lines if line.startswith("churn ")]


def sentences(lines: Sequence[str]) -> List[str]:
    """What hpcwrap said, without what differs from job to job."""
    said_so = [line.partition("hpcwrap: ")[2] for line in lines if "hpcwrap: " in line]
    return [sentence.partition(";")[0].partition(" on n")[0][:70] for sentence in said_so]


# ---- the program ----


def said(text: str) -> None:
    """Tell whoever waits."""
    print(f"  {text}", file=sys.stderr, flush=True)


def tables(report: Report) -> str:
    """All counts, for people."""
    lines = [f"churn: seed {report.seed}, {report.jobs} jobs in {report.seconds} s"]
    for title, counts in (
        ("submitted", report.kinds),
        ("ended", report.states),
        ("done to them", report.blows),
        ("ran in", report.marks),
        ("said by hpcwrap", report.sentences),
        ("seen at once", report.peak),
        ("left", {kind: len(found) for kind, found in report.left.items()}),
    ):
        lines.append(title)
        lines += [f"  {number:6}  {word}" for word, number in sorted(counts.items())]
    wrong: List[Tuple[str, Sequence[str]]] = [
        *(sorted(report.left.items())),
        ("drained", report.drained),
        ("doctor", report.doctor),
        ("broken promises", report.broken),
    ]
    lines += [f"WRONG  {title}: {each}" for title, found in wrong for each in found]
    lines.append("Every promise was kept." if report.is_well else "NOT every promise was kept.")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """A cluster of its own, a churn, its counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: any")
    parser.add_argument("--json", metavar="FILE", help="write the counts there, too")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args(argv)
    site = FourNodes(os.environ.get("HPCWRAP_CLUSTER", STATE))
    site.polling = True  # says nothing of each command
    try:
        site.bring_up()
        report = Churn(site, options.seed, options.jobs).run()
    finally:
        if not options.keep:
            site.take_down()
    print(tables(report))
    if options.json:
        Path(options.json).write_text(json.dumps(report._asdict(), indent=1) + "\n")
    return 0 if report.is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
