"""What only PBS has: TM from inside, nodes that go offline, MoMs that die, qalter, setup."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import Iterator

import pytest
from driver import Ask, Submission
from driver_pbs import Pbs

pytestmark = pytest.mark.pbs

INSIDE = "test -e /.hpcwrap && uname -n"
LOCK = "/var/spool/pbs/mom_priv/mom.lock"
INIT = "/opt/pbs/libexec/pbs_init.d"


def test_pbs_tmrsh_leads_into_the_container_of_the_other_node(pbs: Pbs) -> None:
    script = f"pbs_tmrsh n2 /bin/sh -c '{INSIDE}; exit 9'; echo code $?\n"
    job = pbs.run(Ask(script, "busybox-1", nodes=2))
    assert job.output == "n2\ncode 9\n"


def test_the_files_that_pbs_gives_a_job(pbs: Pbs) -> None:
    script = (
        'cat "$PBS_NODEFILE"; touch "$TMPDIR/x" && echo ok; cd "$PBS_O_WORKDIR" && pwd; '
        "echo $PBS_JOBID $PBS_ENVIRONMENT\n"
    )
    submission = pbs.submit(Ask(script, "busybox-1", nodes=2))
    lines = pbs.wait(submission).output.splitlines()
    assert lines == ["n1", "n2", "ok", "/home/alice", f"{submission.id} PBS_BATCH"]


def test_the_users_shell_need_not_be_in_the_image(pbs: Pbs) -> None:
    """Alice's is bash, and busybox has none."""
    job = pbs.run(Ask("readlink /proc/$PPID/exe\n", "busybox-1"))
    assert job == (0, ("/bin/sh\n",), "")


def test_memory_is_held_to_what_the_job_asked_for(pbs: Pbs) -> None:
    script = "dd if=/dev/zero of=/dev/null bs=400M count=1 && echo survived; exit 0\n"
    job = pbs.run(Ask(script, "busybox-1", memory=64))
    assert "survived" not in job.output


@contextmanager
def pbs_cgroups(pbs: Pbs, node: str) -> Iterator[None]:
    """PBS's own hook at work on one node: nodes of this cluster share one tree of cgroups."""
    hook = "pbs_cgroups application/x-config default"
    before = pbs.root("ctl", "qmgr", "-c", f"export hook {hook}").stdout
    wanted = json.loads(before)
    wanted.update(run_only_on_hosts=[node], discover_gpus=False)
    wanted["cgroup"]["cpuset"]["enabled"] = False
    import_hook(pbs, hook, json.dumps(wanted))
    pbs.root("ctl", "qmgr", "-c", "set hook pbs_cgroups enabled=true")
    path = "/var/spool/pbs/mom_priv/hooks/pbs_cgroups"
    try:
        ready = f"grep -q {node} {path}.CF && ! grep -q enabled=false {path}.HK"
        assert pbs.eventually(lambda: pbs.root(node, "sh", "-c", ready).code == 0)
        yield
    finally:
        pbs.root("ctl", "qmgr", "-c", "set hook pbs_cgroups enabled=false")
        import_hook(pbs, hook, before)
        left = "rmdir /sys/fs/cgroup/*/pbs_jobs.service/jobid /sys/fs/cgroup/*/pbs_jobs.service"
        pbs.root(node, "sh", "-c", left)


def import_hook(pbs: Pbs, hook: str, text: str) -> None:
    """qmgr wants a file whose name ends in .json."""
    pbs.root("ctl", "tee", "/tmp/hook.json", stdin=text)
    assert pbs.root("ctl", "qmgr", "-c", f"import hook {hook} /tmp/hook.json").code == 0


def test_where_pbs_cgroups_holds_jobs_to_their_limits_hpcwrap_adds_none(pbs: Pbs) -> None:
    script = (
        "cat /proc/self/cgroup; dd if=/dev/zero of=/dev/null bs=400M count=1 && echo survived\n"
        f"{INSIDE}\n"
    )
    options = ["-l", "container=busybox-1", "-l", "select=1:ncpus=1:mem=64mb:host=n1"]
    with pbs_cgroups(pbs, "n1"):
        ran = pbs.alice("qsub", *options, "-o", "cg.out", "-e", "cg.err", stdin=script)
        job = pbs.wait(Submission(ran.stdout.strip(), ran.stderr, "cg"))
    assert f":memory:/pbs_jobs.service/jobid/{ran.stdout.strip()}\n" in job.output
    assert "hpcwrap" not in job.output
    assert "survived" not in job.output
    assert job.output.endswith("\nn1\n")


def test_a_program_and_its_words(pbs: Pbs) -> None:
    words = ["a,  b", 'c"d', "e\\f", "$HOME", "p q"]
    options = ["-l", "container=debian-12", "-o", "words.out", "-e", "words.err"]
    ran = pbs.alice("qsub", *options, "--", "/usr/bin/printf", "<%s>", *words)
    pbs.wait(Submission(ran.stdout.strip(), ran.stderr, "words"))
    assert pbs.alice("cat", "words.out").stdout == "".join(f"<{word}>" for word in words)


def test_a_variable_names_a_container_and_the_option_counts_before_it(pbs: Pbs) -> None:
    variables = (("HPCWRAP_CONTAINER", "debian-12"),)
    script = "cat /etc/demo-image\n"
    jobs = [
        pbs.submit(Ask(script, variables=variables)),
        pbs.submit(Ask(script, "busybox-1", on_line=True, variables=variables)),
    ]
    assert [pbs.wait(job).output.strip() for job in jobs] == ["debian-12", "busybox-1"]


def test_the_servers_own_default_of_a_queue(pbs: Pbs) -> None:
    default = "queue workq resources_default.container"
    pbs.root("ctl", "qmgr", "-c", f"set {default}=busybox-1")
    try:
        job = pbs.run(Ask("cat /etc/demo-image\n"))
    finally:
        pbs.root("ctl", "qmgr", "-c", f"unset {default}")
    assert job.output.strip() == "busybox-1"


def test_qalter_asks_the_same_questions(pbs: Pbs) -> None:
    held = pbs.alice(
        "qsub", "-h", "-o", "held.out", "-e", "held.err", stdin="cat /etc/demo-image\n"
    )
    job = held.stdout.strip()
    wrong = pbs.alice("qalter", "-l", "container=debain-12", job)
    assert "there is no environment 'debain-12' (did you mean debian-12?)" in wrong.stderr
    assert pbs.alice("qalter", "-l", "container=busybox-1", job).code == 0
    pbs.alice("qrls", job)
    ended = pbs.wait(Submission(job, "", "held"))
    assert ended.output.strip() == "busybox-1"


def test_a_sandbox_of_the_jobs_own(pbs: Pbs) -> None:
    """PBS writes `cd $PBS_JOBDIR` before the script's path."""
    options = ["-W", "sandbox=PRIVATE", "-o", "sandbox.out", "-e", "sandbox.err"]
    ran = pbs.alice("qsub", *options, "-l", "container=busybox-1", stdin=f"pwd; {INSIDE}\n")
    ended = pbs.wait(Submission(ran.stdout.strip(), ran.stderr, "sandbox"))
    assert re.fullmatch(r"/home/alice/pbs\.\S+\nn\d\n", ended.output)


OUTSIDE = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void run(void)
{
    if (access("/.hpcwrap", F_OK) != 0)
        close(open("/home/alice/ran-outside", O_CREAT | O_WRONLY, 0644));
}
"""


def test_variables_of_the_user_run_nothing_outside(pbs: Pbs) -> None:
    """Whatever starts as the user before the container is joined is static and reads none."""
    pbs.alice("tee", "outside.c", stdin=OUTSIDE)
    assert pbs.alice("gcc", "-shared", "-fPIC", "-o", "outside.so", "outside.c").code == 0
    pbs.alice("tee", "outside.sh", stdin="test -e /.hpcwrap || touch /home/alice/ran-outside\n")
    variables = (
        ("LD_PRELOAD", "/home/alice/outside.so"),
        ("BASH_ENV", "/home/alice/outside.sh"),
        ("ENV", "/home/alice/outside.sh"),
        ("HPCWRAP_CONFIG", "/home/alice/none.yaml"),
        ("PBS_CONF_FILE", "/home/alice/none.conf"),
        ("PBS_JOBID", "../../alice"),
        ("PBS_TASKNUM", "7"),
    )
    job = pbs.run(Ask(f"{INSIDE}\n", "busybox-1", memory=64, variables=variables))
    assert (job.code, job.output) == (0, "n1\n")
    assert pbs.alice("ls", "ran-outside").code != 0


LONG = """
from hpcwrap.schedulers.pbs_ifl import Server
with Server() as server:
    told = {"Variable_List": "PBS_O_WORKDIR=/" + 200000 * "x", "Output_Path": "/home/alice/long"}
    told |= {"Resource_List.container": "busybox-1", "Resource_List.select": "1:ncpus=1"}
    print(server.submit("/home/alice/long.sh", told))
"""


def test_variables_that_are_too_long_take_no_node_out(pbs: Pbs) -> None:
    """With them PBS cannot start the job either; an exception in a hook would blame the node."""
    pbs.alice("tee", "long.sh", stdin="true\n")
    ran = pbs.alice("/opt/hpcwrap/bin/python3", "-c", LONG)
    pbs.wait(Submission(ran.stdout.strip(), ran.stderr, "long"))
    assert pbs.trouble() == ""


def test_variables_that_are_no_utf_8_are_refused(pbs: Pbs) -> None:
    """PBS would lose all of them, and so that which names the container."""
    command = "NAME=$(printf 'x\\351') HPCWRAP_CONTAINER=busybox-1 qsub -V -- /bin/true"
    ran = pbs.alice("sh", "-c", command)
    assert ran.code != 0
    assert "hpcwrap: cannot read the job's variables: one of them is not UTF-8" in ran.stderr


SILENT = """
import os, socket, time
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("registry", 5999))
listening.listen(9)
if os.fork() == 0:
    os.closerange(0, 3)
    time.sleep(60)
"""


def test_a_pull_that_takes_long_holds_up_no_other_job(pbs: Pbs) -> None:
    """pbs_mom waits for its hooks; that registry never answers."""
    pbs.need("cluster", "exec", "ctl", "python3", "-c", SILENT)
    pbs.add_settings("slow", "pull_timeout: 20\nregistry_retries: 0\n")
    pbs.add_environment("slow", "image: registry:5999/slow:1\n")
    try:
        slow = pbs.submit(Ask("echo outside\n", "slow"))
        quick = pbs.run(Ask("echo quick\n"))
        before = pbs.job(slow)["job_state"]
        ended = pbs.wait(slow)
    finally:
        pbs.remove_settings("slow")
        pbs.remove_environment("slow")
    assert (quick.output, before) == ("quick\n", "R")
    assert (ended.code, ended.output) == (125, "")
    assert re.match(r"hpcwrap-enter: (cannot pull|stopped pulling) the image", ended.errors)


def test_an_unfit_node_goes_offline_with_the_reason_and_the_job_runs_elsewhere(pbs: Pbs) -> None:
    """Nobody can write below /run/hpcwrap: no container at all can be made there."""
    pbs.need("cluster", "exec", "n1", "mount", "--bind", "/run/hpcwrap", "/run/hpcwrap")
    pbs.need("cluster", "exec", "n1", "mount", "-o", "remount,bind,ro", "/run/hpcwrap")
    try:
        job = pbs.run(Ask(f"{INSIDE}\n", "busybox-1"))
        node = pbs.root("ctl", "pbsnodes", "n1").stdout
    finally:
        pbs.root("n1", "umount", "/run/hpcwrap")
        pbs.root("ctl", "pbsnodes", "-C", "", "-r", "n1")
    assert job.output == "n2\n"
    assert re.search(r"state = .*offline", node)
    assert re.search(r"comment = hpcwrap: cannot .* /run/hpcwrap", node)


def test_what_a_mom_does_not_know_is_dropped_when_it_starts(pbs: Pbs) -> None:
    """It was killed, with a job; PBS runs the job again, and something else is left of another."""
    mark = f"{pbs.new_name()}.begun"
    submission = pbs.submit(Ask(f"uname -n; touch {mark}; sleep 3; echo done\n", "busybox-1"))
    # Not before: PBS may lose sight of a job that its MoM was about to start.
    assert pbs.eventually(lambda: pbs.alice("ls", mark).code == 0)
    pbs.root("n1", "sh", "-c", f"kill -9 $(cat {LOCK}); mkdir /run/hpcwrap/jobs/pbs-99999.ctl")
    pbs.root("n1", INIT, "start")
    assert pbs.wait(submission).output.endswith("n1\ndone\n")
    assert pbs.eventually(lambda: not pbs.leftovers("n1"))


def test_setup_finds_what_is_wrong_and_mends_it(pbs: Pbs) -> None:
    pbs.tell_scheduler()
    check = ("hpcwrap", "setup", "pbs", "--check")
    assert pbs.root("ctl", *check).code == 0
    assert pbs.root("n1", *check).code == 0
    pbs.root("ctl", "qmgr", "-c", "set hook hpcwrap_enter enabled=false")
    pbs.root("ctl", "qmgr", "-c", "delete hook hpcwrap_epilog")
    ran = pbs.root("ctl", *check)
    assert ran.code == 3
    assert re.search(r"wrong +hook +hpcwrap_enter +enabled", ran.stdout)
    assert re.search(r"missing +hook +hpcwrap_epilog", ran.stdout)
    told = pbs.root("ctl", "hpcwrap", "setup", "pbs").stdout
    assert "the hook hpcwrap_enter is up to date now" in told
    assert "the hook hpcwrap_prolog is as it was" in told
    assert pbs.root("ctl", *check).code == 0
