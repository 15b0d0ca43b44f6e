"""A table that is broken in any way: slurmctld lets no job through that wants a container."""

from __future__ import annotations

from typing import Iterator

import pytest
from site_tools import Site

from hpcwrap.schedulers.slurm_table import VERSION

pytestmark = pytest.mark.slurm

TABLE, FILTER = "/var/lib/hpcwrap/slurm_table.lua", "/etc/slurm/job_submit.lua"
OUTSIDE = "/home/alice/ran-outside"
SCRIPT = f"#!/bin/sh\ntouch {OUTSIDE}\n"
WHOLE = "cannot check the job's container"
UNKNOWN = "there is no environment"

SOUND = (
    f"return {{ version = {VERSION}, "
    "allow_none = true, user_images = false, allow_images = {}, hint = '', "
    "defaults = { partition = { containers = 'busybox-1' }, account = {} }, members = {}, "
    "environments = { ['busybox-1'] = {} }, %s }"
)
"""A table with all that the filter looks at; what is said again at its end is what counts."""

FAULTS = {
    "cut off": f"head -c 200 {TABLE} >t; cat t >{TABLE}",
    "empty": f": >{TABLE}",
    "gone": f"rm {TABLE}",
    "a syntax error": f"echo 'return {{ {{ ]' >{TABLE}",
    "binary": f"head -c 4096 /dev/urandom >{TABLE}",
    "an error when it is loaded": f"echo 'error(\"a bug\")' >{TABLE}",
    "of another version": f"echo 'return {{ version = 1 }}' >{TABLE}",
    "without defaults": f"sed -i 's/defaults *=/defualts =/' {TABLE}",
}
"""What is done to the whole table: nobody knows any more which jobs have a default."""

WRONG_TYPES = {
    "a number for the environments": "environments = 7",
    "no environments": "environments = nil",
    "a number for an environment": "environments = { ['busybox-1'] = 7 }",
    "a text for an environment": "environments = { ['busybox-1'] = '7' }",
    "a table for a digest": "environments = { ['busybox-1'] = { digest = {} } }",
    "a number for the users": "environments = { ['busybox-1'] = { users = 5 } }",
    "no defaults of accounts": "defaults = { partition = {} }",
    "a number for a default": "defaults = { partition = { containers = 7 }, account = {} }",
    "a text for a time": "pins_until = 'tomorrow'",
    "a call that fails": "hint = f(1)",
}
"""What is wrong in one place of a table that else is sound."""

LATE = {
    "a number for a user's groups": "environments = { ['busybox-1'] = { groups = { 'g' } } }, "
    "members = { g = 7 }",
}
"""What only a job finds that comes by it."""


@pytest.fixture(autouse=True)
def mended(site: Site) -> Iterator[None]:
    """A table that is as it should be, before and after; and nothing has run outside."""
    site.alice("rm", "-f", OUTSIDE)
    yield
    site.need("cluster", "exec", "ctl", "rm", "-f", TABLE)
    site.tell_scheduler()
    assert site.alice("ls", OUTSIDE).code != 0
    assert site.submit(SCRIPT, "--container=busybox-1", "--hold").code == 0
    site.alice("scancel", "--user=alice")


def inject(site: Site, command: str, text: str = "") -> None:
    """Do something to slurmctld's table, and have it read."""
    site.need("cluster", "exec", "ctl", "sh", "-c", f"cd /tmp; {command}", stdin=text)
    newer = f"touch -d @$(($(stat -c %Y {FILTER}) + 1)) {FILTER}"
    site.need("cluster", "exec", "ctl", "sh", "-c", newer)


def assert_rejected(site: Site, *options: str, sentence: str = WHOLE) -> None:
    """No job, one sentence."""
    ran = site.submit(SCRIPT, *options)
    assert (ran.stdout, ran.code) == ("", 1)
    assert ran.stderr.count("hpcwrap:") == 1
    assert sentence in ran.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_a_table_that_is_broken_rejects_every_job(site: Site, fault: str) -> None:
    """Also one that asks for nothing: a default might apply, and nobody can tell."""
    inject(site, FAULTS[fault])
    for options in (["--container=busybox-1"], ["--partition=containers"], []):
        assert_rejected(site, *options)


@pytest.mark.parametrize("fault", WRONG_TYPES)
def test_a_wrong_type_anywhere_rejects_every_job(site: Site, fault: str) -> None:
    inject(site, f"cat >{TABLE}", SOUND % WRONG_TYPES[fault])
    for options in (["--container=busybox-1"], ["--partition=containers"], []):
        assert_rejected(site, *options)


@pytest.mark.parametrize("fault", LATE)
def test_an_error_on_the_way_rejects_the_job(site: Site, fault: str) -> None:
    inject(site, f"cat >{TABLE}", SOUND % LATE[fault])
    for options in (["--container=busybox-1"], ["--partition=containers"]):
        assert_rejected(site, *options)


def test_a_huge_table_is_no_fault(site: Site) -> None:
    """50 000 environments: slurmctld reads them once."""
    rows = "".join(f"['e-{number}'] = {{}}," for number in range(50_000))
    inject(site, f"cat >{TABLE}", SOUND % f"environments = {{ {rows} }}")
    assert_rejected(site, "--container=busybox-1", sentence=UNKNOWN)
    held = site.submit(SCRIPT, "--container=e-49999", "--hold")
    assert held.code == 0, held.stderr
