"""Entries of scrontab, which sends no --container: the word of the comment asks."""

import re
from typing import Iterator

import pytest
from site_tools import RELEASE, Site
from slurm_conf import configured

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(RELEASE == "22.05", reason="Debian's packages of 22.05 have no scrontab"),
]

ENTRY = """\
#SCRON --comment=hpcwrap={} --output=/home/alice/cron.out --open-mode=append
* * * * * echo in ${{HPCWRAP_CONTAINER%%@*}}.
"""


@pytest.fixture(scope="module")
def cron(site: Site) -> Iterator[Site]:
    """A site that lets users have entries; alice's end with the tests."""
    with configured(site, r"$a ScronParameters=enable"):
        yield site
        site.alice("scrontab", "-r")


def test_each_run_of_an_entry_is_inside(cron: Site) -> None:
    assert cron.alice("scrontab", "-", stdin=ENTRY.format("busybox-1")).code == 0
    job = cron.alice("squeue", "--me", "-h", "-o", "%A").stdout.strip()
    assert re.search(r"Comment=hpcwrap=busybox-1 *$", cron.job(job), re.M), "no digest of today"
    assert cron.eventually(lambda: cron.alice("cat", "cron.out").stdout != "", 120)
    assert cron.alice("cat", "cron.out").stdout.startswith("in busybox-1.\n")


def test_a_wrong_name_is_refused(cron: Site) -> None:
    """Slurm 24.11 does not pass the sentence on."""
    refused = cron.alice("scrontab", "-", stdin=ENTRY.format("debain-12"))
    assert refused.code != 0
    assert "There was an issue with the job submission on lines 1-2" in refused.stdout
