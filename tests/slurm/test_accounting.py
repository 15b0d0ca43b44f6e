"""What accounting and syslog get to know of a job, and what `hpcwrap show` tells of it."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, Iterator, List

import pytest
from site_tools import Site
from variants import REGISTRY, push

pytestmark = pytest.mark.slurm

SCRIPT = "#!/bin/sh\nsrun true\necho $HPCWRAP_CONTAINER\n"
SOCKET, LINES = "/run/hpcwrap-test-log", "/run/hpcwrap-test-lines"

LISTENER = f"""
import os, socket
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind("{SOCKET}")
with open("{LINES}", "ab", 0) as file:
    while True:
        file.write(listener.recv(65536) + b"\\n")
"""
"""Writes down what comes to a socket, as a syslog daemon does."""

PAIR = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |$)')


@pytest.fixture(name="fresh")
def make_fresh_environment(site: Site) -> Iterator[str]:
    """An environment whose image nobody has pulled: the submission cannot know its digest."""
    digest = push(site, "fresh:latest", "accounting")
    site.add_environment("fresh", f"image: {REGISTRY}/fresh:latest\n")
    yield digest
    site.remove_environment("fresh")
    site.tell_scheduler()


def admin_comment(site: Site, job: str) -> str:
    found = re.search(r"\bAdminComment=(.*)", site.job(job))
    return found.group(1).strip() if found else ""


def test_the_digest_that_a_job_runs_is_in_its_admin_comment(site: Site, fresh: str) -> None:
    """Submitted before anybody knew the digest; what the site has noted there stays."""
    ran = site.submit(SCRIPT, "--container=fresh", "--hold", "--output=fresh.out")
    job = ran.stdout.strip()
    assert admin_comment(site, job) == "hpcwrap=fresh"
    note = ("scontrol", "update", f"JobId={job}", "AdminComment=budget=7 hpcwrap=fresh")
    site.need("cluster", "exec", "ctl", *note)
    site.need("cluster", "exec", "ctl", "scontrol", "release", job)
    assert site.eventually(lambda: site.has_ended(job), 60)
    assert site.alice("cat", "fresh.out").stdout == f"fresh@{fresh}\n"
    noted = f"budget=7 hpcwrap=fresh@{fresh}"
    assert site.eventually(lambda: admin_comment(site, job) == noted), admin_comment(site, job)


def test_a_submission_leaves_its_line_in_slurmctlds_log(site: Site) -> None:
    for name in ("debian-12", "no-such"):
        site.alice("sbatch", "--test-only", f"--container={name}", stdin=SCRIPT)
    lines = site.root("ctl", "grep", "stage=submit", "/var/log/slurm/slurmctld.log").stdout
    # The digest is not known yet where this is the first job of the cluster's.
    image = r"image=debian-12(@sha256:[0-9a-f]{64})?$"
    assert re.search(rf"hpcwrap: stage=submit uid=2001 {image}", lines, re.M)
    assert "uid=2001 error=\"there is no environment 'no-such'" in lines


# ---- syslog ----


@pytest.fixture(name="log")
def make_log(site: Site) -> Iterator[None]:
    """A socket at /dev/log of n1's mounts alone."""
    start = f"rm -f {SOCKET} {LINES}; python3 -c '{LISTENER}' >/dev/null 2>&1 & echo $!"
    process = site.need("cluster", "exec", "n1", "sh", "-c", start).strip()
    assert site.eventually(lambda: site.root("n1", "test", "-e", SOCKET).code == 0)
    bind = f"touch /dev/log && mount --bind {SOCKET} /dev/log"
    site.need("cluster", "exec", "n1", "sh", "-c", bind)
    yield
    end = f"umount /dev/log; rm -f /dev/log {SOCKET} {LINES}; kill {process}"
    site.need("cluster", "exec", "n1", "sh", "-c", end)


def lines(site: Site, job: str) -> List[Dict[str, str]]:
    """What came of a job, each line as its fields; all of it must be what docs/admins.md says."""
    came = site.root("n1", "cat", LINES).stdout.splitlines()
    ours = [line for line in came if f" job={job} " in line]
    return [fields(line) for line in ours]


def fields(line: str) -> Dict[str, str]:
    """A line of RFC 3164 whose text is logfmt."""
    head = re.match(r"<30>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d hpcwrap\[\d+\]: ", line)
    assert head, line
    text = line[head.end() :]
    pairs = PAIR.findall(text)
    assert "".join(match.group(0) for match in PAIR.finditer(text)) == text
    return {key: json.loads(value) if value[0] == '"' else value for key, value in pairs}


@pytest.mark.usefixtures("log")
def test_one_line_a_stage_comes_to_syslog(site: Site) -> None:
    job = site.batch(SCRIPT, "--container=busybox-1", "--nodelist=n1")
    assert job.code == 0
    assert site.eventually(lambda: len(lines(site, job.id)) == 3), lines(site, job.id)
    said = lines(site, job.id)
    assert [each["stage"] for each in said] == ["prolog", "enter", "epilog"]
    for each in said:
        assert (each["job"], each["user"], each["node"]) == (job.id, "alice", "n1")
        assert each["image"] == job.output.strip()
        assert float(each["ms"]) > 0
    assert said[1]["joins"] == "2"


@pytest.mark.usefixtures("log")
def test_a_job_without_its_container_leaves_the_reason_in_one_line(site: Site) -> None:
    site.add_environment("gone", "image: registry:5000/no-such-image:latest\n")
    job = site.batch(SCRIPT, "--container=gone", "--nodelist=n1")
    site.remove_environment("gone")
    (said,) = lines(site, job.id)
    assert (said["stage"], said["user"], said["image"]) == ("prolog", "alice", "gone")
    assert "no-such-image" in said["error"]
    assert said["error"] in job.output


# ---- hpcwrap show ----


def show(site: Site, who: str, what: str, job: str) -> Any:
    """What a user of n1 is shown; None when it is nothing."""
    told = site.root("n1", "setpriv", *identity(who), "hpcwrap", "show", what, job, "--json")
    return json.loads(told.stdout) if told.code == 0 else None


def identity(who: str) -> List[str]:
    return ["--reuid", who, "--regid", who, "--init-groups"]


def test_users_are_shown_their_jobs_running_and_ended(site: Site) -> None:
    waits = "#!/bin/sh\ntouch began\nwhile [ ! -e over ]; do sleep 0.1; done\n"
    site.alice("rm", "-f", "over", "began")
    options = ("--container=busybox-1", "--nodelist=n1", "--array=3")
    array = site.submit(waits, *options).stdout.strip()
    assert site.eventually(lambda: site.alice("ls", "began").code == 0, 60)
    (request,) = show(site, "alice", "request", f"{array}_3")
    assert (request["environment"], request["origin"]) == ("busybox-1", "--container")
    (plan,) = show(site, "alice", "plan", f"{array}_3")
    assert plan["operations"][0].startswith("for alice")
    assert show(site, "bob", "request", f"{array}_3") is None
    site.alice("touch", "over")
    assert site.eventually(lambda: site.has_ended(array), 60)
    assert site.eventually(lambda: site.root("n1", "ls", "/run/hpcwrap/jobs").stdout == "")
    (record,) = show(site, "alice", "record", request["job"])
    assert record["ended"] > record["started"]
    assert show(site, "alice", "plan", request["job"]) == [plan]
    assert show(site, "bob", "record", request["job"]) is None
