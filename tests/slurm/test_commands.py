"""Slurm's commands inside, and hpcwrap's own on the nodes."""

import re
import signal
import time

import pytest
from site_tools import Site

pytestmark = pytest.mark.slurm

TINY = "--container=busybox-1"


def test_slurms_commands_work_in_an_image_without_libc(site: Site) -> None:
    """busybox-1 has one static program and no library at all."""
    job = site.batch(
        "#!/bin/sh\nsinfo -h -o %P; squeue -h -j $SLURM_JOB_ID -o %u\n"
        "srun -n2 /bin/sh -c 'echo rank $SLURM_PROCID $HPCWRAP_CONTAINER'\n",
        *(TINY, "-n2"),
    )
    assert job.code == 0
    assert "main*\n" in job.output
    assert "alice\n" in job.output
    assert sorted(re.findall(r"^rank (\d) busybox-1@", job.output, re.M)) == ["0", "1"]


def test_a_job_can_submit_the_next_from_inside(site: Site) -> None:
    site.alice("rm", "-f", "next.out")
    job = site.batch(
        "#!/bin/sh\nsbatch --parsable --output=next.out --container=debian-12 "
        "--wrap 'echo next $HPCWRAP_CONTAINER'\n",
        TINY,
    )
    assert job.code == 0
    assert site.eventually(lambda: "next debian-12@" in site.alice("cat", "next.out").stdout)


def test_commands_are_at_their_own_paths_for_login_shells(site: Site) -> None:
    job = site.batch(
        # Else srun tells of a step that it had to wait for.
        "#!/bin/bash -l\nsrun -Q echo one\nPATH=/usr/bin:/bin\nsrun -Q echo two\n"
        "/usr/bin/srun -Q echo three\n",
        "--container=debian-12",
    )
    assert job.output == "one\ntwo\nthree\n"


def test_the_hosts_root_is_no_way_to_more_rights(site: Site) -> None:
    """Through /.host as through any mount: no set-user-id program, no new privilege."""
    # The image's, for it runs with any later libc, and so on every host.
    site.alice("srun", "--container=debian-12", "cp", "/usr/bin/id", "/home/alice/image-id")
    site.need("cluster", "exec", "n1", "cp", "/home/alice/image-id", "/usr/local/bin/suid-id")
    site.need("cluster", "exec", "n1", "chmod", "4755", "/usr/local/bin/suid-id")
    outside = site.alice("srun", "-wn1", "/usr/local/bin/suid-id").stdout
    assert "euid=0" in outside
    inside = site.alice("srun", "-wn1", "--container=debian-12", "/.host/usr/local/bin/suid-id")
    assert "uid=2001" in inside.stdout
    assert "euid=0" not in inside.stdout
    site.need("cluster", "exec", "n1", "rm", "/usr/local/bin/suid-id")


def run(site: Site, *words: str, node: str = "n1", stdin: str = "") -> "tuple[int, str, str]":
    """`hpcwrap run` as root on a node."""
    return site.root(node, "hpcwrap", "run", *words, stdin=stdin)


def runs(site: Site) -> "list[str]":
    """What `hpcwrap run` has on n1."""
    found = site.root("n1", "ls", "/run/hpcwrap/jobs").stdout.split()
    return [name for name in found if name.startswith("run-")]


def test_hpcwrap_run_joins_as_the_user(site: Site) -> None:
    code, out, _ = run(site, "--user", "alice", "debian-12", "--", "sh", "-c", "id; exit 7")
    assert code == 7
    assert out.startswith("uid=2001(alice) gid=2001(alice) groups=2001(alice)")
    assert "3001(research)" in out
    assert runs(site) == []


def test_hpcwrap_run_passes_input_and_variables(site: Site) -> None:
    code, out, _ = run(
        site,
        *("--user", "alice", "--env", "A=b", "busybox-1", "--"),
        *("/bin/sh", "-c", "echo $A $HOME; cat"),
        stdin="typed\n",
    )
    assert (code, out) == (0, "b /home/alice\ntyped\n")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["busybox-1", "--", "true"], 2, "say --user USER"),
        (["--user", "nobody-at-all", "busybox-1"], 2, "cannot find the user nobody-at-all"),
        (["--user", "alice", "busybox-2"], 2, "busybox-1"),
        (["--user", "alice", "busybox-1", "--", "gcc"], 127, "cannot find the command gcc"),
    ],
)
def test_wrong_input_gets_a_sentence(
    site: Site, words: "list[str]", code: int, sentence: str
) -> None:
    ended, _, said = run(site, *words)
    assert ended == code
    assert sentence in said
    assert "Traceback" not in said


def test_a_killed_run_is_swept_by_the_next(site: Site) -> None:
    site.root(
        "n1",
        *("sh", "-c"),
        "setsid hpcwrap run --user alice busybox-1 -- sleep 300 >/dev/null 2>&1 </dev/null & "
        "echo $! >/run/run.pid",
    )
    assert site.eventually(lambda: runs(site) != [])
    time.sleep(0.3)
    site.root("n1", "sh", "-c", f"kill -{signal.SIGKILL.value} $(cat /run/run.pid)")
    assert len(runs(site)) == 1
    assert run(site, "--user", "alice", "busybox-1", "--", "true")[0] == 0
    assert runs(site) == []
    site.root("n1", "sh", "-c", "kill $(pidof sleep)")


def test_plan_says_what_the_prolog_would_do(site: Site) -> None:
    text = site.need("cluster", "exec", "n1", "hpcwrap", "plan", "--user", "alice", "debian-12")
    for words in ("for alice (uid 2001)", "/home/alice", "/run/munge", "/var/spool/slurmd", "srun"):
        assert words in text
    assert "path /opt/demo/bin:" in text


def test_setup_finds_nothing_missing(site: Site) -> None:
    for node in ("ctl", "n1", "n2"):
        # Every node has slurmctld, and so a table; other tests' environments are in ctl's alone.
        site.need("cluster", "exec", node, "hpcwrap", "setup", "slurm", "--table")
        assert site.root(node, "hpcwrap", "setup", "slurm", "--check").code == 0


def test_an_image_in_use_cannot_be_removed(site: Site) -> None:
    site.alice("rm", "-f", "going")
    script = "#!/bin/sh\ntouch going; while [ -e going ]; do sleep 0.1; done\n"
    job = site.submit(script, TINY, "-wn1").stdout.strip()
    assert site.eventually(lambda: site.alice("ls", "going").code == 0)
    refused = site.root("n1", "hpcwrap", "rm", "busybox-1")
    assert refused.code == 2
    assert "use" in refused.stderr
    site.alice("rm", "going")
    assert site.eventually(lambda: site.has_ended(job))
