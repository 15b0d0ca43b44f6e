"""sacct shows which image a job ran: slurmctld, slurmdbd and MariaDB, as a site has them."""

from __future__ import annotations

from typing import Iterator

import pytest
from site_tools import Site
from variants import REGISTRY, push

pytestmark = pytest.mark.slurm

SCRIPT = "#!/bin/sh\necho $HPCWRAP_CONTAINER\n"
SLURM_CONF, DBD_CONF, DATA = "/etc/slurm/slurm.conf", "/etc/slurm/slurmdbd.conf", "/var/test-db"
ENDINGS = "/run/slurmdbd.pid /run/test-db.pid"

LINES = "AccountingStorageType=accounting_storage/slurmdbd\\nAccountingStorageHost=ctl\\n"

DBD = """\
AuthType=auth/munge
DbdHost=ctl
SlurmUser=root
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
"""

BEGIN = f"""
eventually() {{
    for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
    "$@"
}}
mkdir -p {DATA} /run/mysqld
mariadb-install-db --no-defaults --user=root --datadir={DATA} --skip-test-db \
    --auth-root-authentication-method=normal >/dev/null
setsid mariadbd --no-defaults --user=root --datadir={DATA} --skip-networking \
    --socket=/run/mysqld/mysqld.sock --pid-file=/run/test-db.pid </dev/null >/dev/null 2>&1 &
eventually mariadb-admin --no-defaults --user=root --socket=/run/mysqld/mysqld.sock status
chmod 0600 {DBD_CONF}
slurmdbd
cp -p {SLURM_CONF} {SLURM_CONF}.kept
printf '{LINES}' >>{SLURM_CONF}
eventually sacctmgr --noheader show cluster
sacctmgr --immediate add cluster hpcwrap
"""

END = f"""
mv {SLURM_CONF}.kept {SLURM_CONF}
for file in {ENDINGS}; do kill "$(cat $file)"; done
while [ -e /run/test-db.pid ]; do sleep 0.1; done
rm -rf {DATA} {DBD_CONF}
"""


@pytest.fixture(scope="module", name="accounted")
def make_accounting(site: Site) -> Iterator[Site]:
    """The site with a database of its jobs; without it again afterwards."""
    if site.root("ctl", "which", "slurmdbd", "mariadbd").code:
        pytest.skip("the nodes' packages of this release of Slurm have no database")
    site.need("cluster", "exec", "ctl", "tee", DBD_CONF, stdin=DBD)
    site.need("cluster", "exec", "ctl", "sh", "-euc", BEGIN)
    site.need("cluster", "restart")
    yield site
    site.need("cluster", "exec", "ctl", "sh", "-uc", END)
    site.need("cluster", "restart")


def comment_of(site: Site, job: str) -> str:
    """What sacct shows, as the job's user sees it."""
    words = ("--allocations", "--noheader", "--parsable2", "--format=AdminComment")
    return site.alice("sacct", f"--jobs={job}", *words).stdout.strip()


def test_sacct_shows_the_digest_that_ran(accounted: Site) -> None:
    """Known at submission, and known to the node only."""
    site = accounted
    digest = push(site, "unpulled:latest", "sacct")
    site.add_environment("unpulled", f"image: {REGISTRY}/unpulled:latest\n")
    for name in ("busybox-1", "unpulled"):
        # It has to last until slurmctld was told: what comes later is for scontrol alone to show.
        job = site.batch(f"{SCRIPT}sleep 2\n", f"--container={name}")
        ran = job.output.strip()
        assert ran.startswith(f"{name}@sha256:")
        shown = f"hpcwrap={ran}"
        assert site.eventually(lambda j=job.id, s=shown: comment_of(site, j) == s), job.id
    assert ran == f"unpulled@{digest}"
    site.remove_environment("unpulled")
    site.tell_scheduler()
