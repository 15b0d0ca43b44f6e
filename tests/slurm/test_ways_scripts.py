"""TaskProlog and TaskEpilog, the site's and the user's."""

from typing import Iterator

import pytest
from site_tools import RELEASE, Site
from slurm_conf import configured

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(RELEASE == "24.11", reason="24.11.5 runs TaskProlog by its slurmstepd"),
]

TINY = "--container=busybox-1"
WHERE = "test -e /etc/hpcwrap && echo host || echo image"
# busybox-1 has no bash, and /shared is not in there.
SCRIPTS = {
    "/shared/site-task-prolog": (
        "#!/bin/bash\n"
        'echo "export FROM_SITE=rank-$SLURM_PROCID-$(uname -n)"\necho "unset UNWANTED"\n'
        f'echo "print site prolog on $({WHERE})"\n'
        '[ -z "$FAIL" ] || exit 3\n'
    ),
    "/shared/site-task-epilog": f"#!/bin/bash\n({WHERE}) >/home/alice/site-epilog-$SLURM_PROCID\n",
    "/home/alice/own-prolog": (
        f"#!/bin/sh\necho export FROM_USER=yes\necho print own on $({WHERE})\n"
    ),
    "/home/alice/own-epilog": f"#!/bin/sh\n({WHERE}) >/home/alice/own-epilog-$SLURM_PROCID\n",
}


@pytest.fixture(scope="module")
def scripts(site: Site) -> Iterator[Site]:
    """A site with both scripts."""
    for path, text in SCRIPTS.items():
        site.need("cluster", "exec", "ctl", "tee", path, stdin=text)
        site.need("cluster", "exec", "ctl", "chmod", "755", path)
    lines = r"TaskProlog=/shared/site-task-prolog\nTaskEpilog=/shared/site-task-epilog"
    with configured(site, f"$a {lines}"):
        yield site


@pytest.mark.parametrize("ask", ["", TINY], ids=["host", "container"])
def test_the_sites_task_prolog_runs_on_the_host_for_each_rank(scripts: Site, ask: str) -> None:
    scripts.alice("rm", "-f", "site-epilog-0", "site-epilog-1")
    ran = scripts.alice(
        *("env", "UNWANTED=there", "bash", "-c"),
        f"srun {ask} -N2 -n2 /bin/sh -c 'echo $FROM_SITE -$UNWANTED-; {WHERE}'",
    )
    assert ran.code == 0
    assert ran.stdout.count("site prolog on host\n") == 2
    assert "rank-0-n1 --\n" in ran.stdout
    assert "rank-1-n2 --\n" in ran.stdout
    assert ran.stdout.count("image\n") == (2 if ask else 0)
    for rank in (0, 1):
        told = ("cat", f"site-epilog-{rank}")
        assert scripts.eventually(lambda told=told: scripts.alice(*told).stdout == "host\n")


def test_the_batch_script_gets_them_too(scripts: Site) -> None:
    job = scripts.batch("#!/bin/sh\necho $FROM_SITE\n", TINY)
    assert job.output.startswith("site prolog on host\nrank-0-n")


@pytest.mark.parametrize("ask", ["", TINY], ids=["host", "container"])
def test_a_task_prolog_that_fails_ends_the_rank(scripts: Site, ask: str) -> None:
    ran = scripts.alice("bash", "-c", f"FAIL=1 srun {ask} echo WRONG")
    assert ran.code == 3
    assert "WRONG" not in ran.stdout
    assert "TaskProlog failed status=3" in ran.stderr


@pytest.mark.parametrize("ask", ["", TINY], ids=["host", "container"])
def test_the_users_prolog_runs_where_the_rank_does_and_the_epilog_on_the_host(
    scripts: Site, ask: str
) -> None:
    scripts.alice("rm", "-f", "own-epilog-0")
    options = f"{ask} --task-prolog=/home/alice/own-prolog --task-epilog=/home/alice/own-epilog"
    ran = scripts.alice("bash", "-c", f"srun {options} /bin/sh -c 'echo $FROM_USER'")
    assert f"own on {'image' if ask else 'host'}\nyes\n" in ran.stdout
    assert scripts.eventually(lambda: scripts.alice("cat", "own-epilog-0").stdout == "host\n")
