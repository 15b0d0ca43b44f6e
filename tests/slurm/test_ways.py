"""Whatever the way, a job in a container ends as one without: both are run and compared."""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Dict, List

import pytest
from site_tools import REPOSITORY, Site
from ways import ASK, WAYS, Ended, plain, run

pytestmark = pytest.mark.slurm

UNTIL_KILLED = """\
#!/bin/sh
trap 'echo usr1' USR1
trap 'echo term' TERM
while :; do sleep 0.1; done
"""


@pytest.fixture(scope="module", autouse=True)
def at_limit(site: Site) -> Dict[str, str]:
    """Jobs that go to their time limit while the other tests run: what they ask, their ids."""
    words = ("-t1", "--signal=B:USR1@40", "--output=limit-%j")
    return {
        ask: site.submit(UNTIL_KILLED, *words, ask or "-n1").stdout.strip() for ask in ("", ASK)
    }


@pytest.mark.parametrize("title", WAYS)
def test_as_without_a_container(site: Site, title: str) -> None:
    with ThreadPoolExecutor() as pool:
        outside, inside = pool.map(partial(run, site, WAYS[title]), ("", ASK))
    assert "image" not in outside.output
    assert not re.search(r"^(\d: )?host$", inside.output, re.M)
    assert inside._replace(output=re.sub(r"\bimage\b", "host", inside.output)) == outside


def test_the_signal_before_the_time_limit_and_the_limit(
    site: Site, at_limit: Dict[str, str]
) -> None:
    ended: List[Ended] = []
    for job in at_limit.values():
        assert site.eventually(lambda job=job: site.has_ended(job), 150)
        state = re.search(r"JobState=\w+|ExitCode=\S+", site.job(job))
        output = site.alice("cat", f"limit-{job}").stdout
        ended.append(Ended(0, plain(output).replace(job, "ID"), state.group() if state else ""))
    assert ended[0] == ended[1]
    assert re.match(r"usr1\n.*DUE TO TIME LIMIT.*\nterm$", ended[0].output, re.S)
    assert ended[0].errors == "JobState=TIMEOUT"


def test_the_users_guide_names_the_ways() -> None:
    """Each option that the guide says works as ever is among the ways that are compared."""
    guide = (REPOSITORY / "docs" / "users.md").read_text()
    said = re.search(r"works as it does without a container: (.*?)\. What", guide, re.S)
    assert said
    tested = " ".join((*WAYS, *WAYS.values(), "--requeue"))
    for option in re.findall(r"`(--\S+)`", said.group(1)):
        assert option in tested, option
