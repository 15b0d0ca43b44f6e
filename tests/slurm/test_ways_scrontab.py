"""Entries of scrontab, which sends no --container but the lines that have it."""

import re
from typing import Iterator

import pytest
from site_tools import RELEASE, Site
from slurm_conf import configured

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(RELEASE == "22.05", reason="Debian's packages of 22.05 have no scrontab"),
]

ASKS = ("--comment=hpcwrap={}", "--container={}")
ENTRY = """\
#SCRON {} --output=/home/alice/cron-{}.out --open-mode=append
* * * * * echo in ${{HPCWRAP_CONTAINER%%@*}}.
"""


@pytest.fixture(scope="module")
def cron(site: Site) -> Iterator[Site]:
    """A site that lets users have entries; alice's end with the tests."""
    with configured(site, r"$a ScronParameters=enable"):
        yield site
        site.alice("scrontab", "-r")


def test_each_run_of_an_entry_is_inside(cron: Site) -> None:
    asks = [ask.format("busybox-1") for ask in ASKS]
    entries = "".join(ENTRY.format(ask, index) for index, ask in enumerate(asks))
    assert cron.alice("scrontab", "-", stdin=entries).code == 0
    jobs = cron.alice("squeue", "--me", "-h", "-o", "%A").stdout.split()
    assert len(jobs) == len(ASKS)
    for job in jobs:
        noted = re.search(r"Comment=hpcwrap=busybox-1 *$", cron.job(job), re.M)
        assert noted, "no digest of today"
    for index in range(len(ASKS)):
        words = ("cat", f"cron-{index}.out")
        assert cron.eventually(lambda words=words: cron.alice(*words).stdout != "", 120)
        assert cron.alice(*words).stdout.startswith("in busybox-1.\n")


@pytest.mark.parametrize("ask", ASKS)
def test_a_wrong_name_is_refused(cron: Site, ask: str) -> None:
    """Slurm 24.11 does not pass the sentence on."""
    entry = ENTRY.format(ask.format("debain-12"), "wrong")
    refused = cron.alice("scrontab", "-", stdin=entry)
    assert refused.code != 0
    assert "There was an issue with the job submission on lines 1-2" in refused.stdout
