"""submit/slurm.lua and the entries of scrontab, which sends their options in the script only."""

from __future__ import annotations

from typing import Optional

import pytest
from filters import PIN, Filter


def test_each_run_of_an_entry_of_scrontab_takes_the_image_of_its_day(lua: Filter) -> None:
    entry = {"script": "#!/bin/sh", "environment": {}, "cron_job": True}
    done = lua.submit(container="debian-12", **entry)
    assert (done.comment, done.mark) == ("hpcwrap=debian-12", "debian-12")
    assert lua.submit(container=PIN, **entry).comment == f"hpcwrap={PIN}"


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ("#SCRON --container=debian-12 -n1", "debian-12"),
        ("#SCRON --time=5\n#SCRON --container debian-12", "debian-12"),
        ("#SCRON --containe 'debian-12'", "debian-12"),
        ('#SCRON --container=of-alice\n#SCRON "--container=debian-12"', "debian-12"),
        ('#SCRON -J \'a "#1\' --container="debian-12"', "debian-12"),
        ("#SCRON --container=none", "none"),
        ('#SCRON -J "a --container=debian-12"', None),
        ("#SCRON --contiguous debian-12", None),
        ("#SCRON -n1 # --container=debian-12", None),
        ("#SBATCH --container=debian-12", None),
    ],
)
def test_scrontab_has_the_option_in_its_script_only(
    lua: Filter, lines: str, word: Optional[str]
) -> None:
    """Written as scrontab.c does; what it asks for is a word of the comment, and the mark."""
    script = f"#!/bin/sh\n# This job was submitted through scrontab\n{lines}\n# crontab\ntrue\n"
    done = lua.submit(script=script, environment={}, cron_job=True)
    assert done.code == 0
    assert done.comment == (word and f"hpcwrap={word}")
    assert done.mark == (None if word == "none" else word)
    assert not lua.submit(script=script, environment={}).comment, "no entry of scrontab"


@pytest.mark.parametrize("option", ["--container", "--container=", "--container=debain-12"])
def test_a_wrong_option_of_scrontab_is_refused(lua: Filter, option: str) -> None:
    script = f"#!/bin/sh\n#SCRON {option}\ntrue\n"
    done = lua.submit(script=script, environment={}, cron_job=True)
    assert (done.code, done.mark) == (-1, None)
    assert "there is no environment" in done.said
