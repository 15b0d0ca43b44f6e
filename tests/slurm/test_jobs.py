"""Jobs as users submit them, on a real two-node Slurm."""

import re
import time

import pytest
from site_tools import NODES, Site

pytestmark = pytest.mark.slurm

TINY = "#!/bin/sh\n"
INSIDE = "busybox-1@sha256:"


def ranks(output: str) -> "list[str]":
    """Lines that mpi-hello's ranks printed."""
    return [line for line in output.splitlines() if re.match(r"rank +\d+ of", line)]


def test_the_directive_puts_script_and_steps_inside(site: Site) -> None:
    job = site.batch(
        "#!/bin/bash\n#SBATCH --container=debian-12\n#SBATCH -N2 -n2\n"
        "echo script $HPCWRAP_CONTAINER $DEMO_IMAGE $(id -un) $(pwd)\n"
        "srun sh -c 'echo step $HPCWRAP_CONTAINER $DEMO_IMAGE $(id -un) $(hostname)'\n"
    )
    assert job.code == 0
    assert re.search(
        r"^script debian-12@sha256:[0-9a-f]{64} yes alice /home/alice$", job.output, re.M
    )
    steps = re.findall(r"^step debian-12@sha256:[0-9a-f]{64} yes alice (n\d)$", job.output, re.M)
    assert sorted(steps) == list(NODES)


def test_without_a_container_the_job_runs_on_the_host(site: Site) -> None:
    job = site.batch(
        "#!/bin/bash\necho in=$HPCWRAP_CONTAINER; test -x /usr/sbin/slurmd && echo host\n"
    )
    assert job.output == "in=\nhost\n"


# Sixteen on two processors are too many for Debian's Open MPI 4.1.4: 4 of 70 such steps end with a
# signal while ranks of a node find each other, without any container as well.
@pytest.mark.usefixtures("pmix")
@pytest.mark.parametrize("layout", [("-N2", "-n4"), ("-N1", "-n8"), ("-N2", "-n8")], ids=" ".join)
def test_mpi_ranks_on_one_node_and_on_both(site: Site, layout: "tuple[str, str]") -> None:
    job = site.batch(
        "#!/bin/bash\n#SBATCH --container=debian-12\nsrun --mpi=pmix mpi-hello\n", *layout
    )
    assert job.code == 0
    lines = ranks(job.output)
    size = int(layout[1][2:])
    assert len(lines) == size
    assert all(f"of {size}" in line for line in lines)
    nodes = {node for node in NODES if any(node in line for line in lines)}
    assert len(nodes) == int(layout[0][2:])


def test_srun_of_its_own_allocation(site: Site) -> None:
    ran = site.alice(
        "srun", "-N2", "--container=busybox-1", "/bin/sh", "-c", "echo $HPCWRAP_CONTAINER"
    )
    assert ran.code == 0
    assert ran.stdout.count(INSIDE) == 2


@pytest.mark.usefixtures("pmix")
def test_srun_pmix_of_its_own_allocation(site: Site) -> None:
    ran = site.alice("srun", "-N2", "-n4", "--container=debian-12", "--mpi=pmix", "mpi-hello")
    assert ran.code == 0
    assert len(ranks(ran.stdout)) == 4


def test_salloc_runs_its_shell_inside(site: Site) -> None:
    ran = site.alice("salloc", "--container=debian-12", stdin="echo shell $HPCWRAP_CONTAINER\n")
    assert "shell debian-12@sha256:" in ran.stdout


def test_a_step_of_salloc_is_inside(site: Site) -> None:
    ran = site.alice(
        "salloc", "--container=busybox-1", "srun", "/bin/sh", "-c", "echo step $HPCWRAP_CONTAINER"
    )
    assert f"step {INSIDE}" in ran.stdout


def test_a_step_that_repeats_the_jobs_container_has_no_other(site: Site) -> None:
    job = site.batch("#!/bin/bash\nsrun --container=debian-12 true\n", "--container=debian-12")
    assert job.code == 0
    ids = (job.id, f"{job.id}.0")
    shown = [site.root("ctl", "hpcwrap", "show", "record", each) for each in ids]
    assert [ran.code == 0 for ran in shown] == [True, False]


def test_the_partitions_default_is_applied(site: Site) -> None:
    job = site.batch(TINY + "echo $HPCWRAP_CONTAINER\n", "--partition=containers")
    assert job.output.startswith(INSIDE)
    ran = site.alice("srun", "--partition=containers", "/bin/sh", "-c", "echo $HPCWRAP_CONTAINER")
    assert ran.stdout.startswith(INSIDE)


def test_none_opts_out_of_the_default(site: Site) -> None:
    job = site.batch(
        "#!/bin/bash\necho in=$HPCWRAP_CONTAINER\n", "--partition=containers", "--container=none"
    )
    assert job.output == "in=\n"


def test_a_wrong_name_is_refused_in_one_sentence_and_makes_no_job(site: Site) -> None:
    job = site.batch("#!/bin/sh\ntrue\n", "--container=debain-12")
    assert (job.id, job.code) == ("", 1)
    assert "debian-12" in job.stderr, "the nearest name is offered"
    said = [line for line in job.stderr.splitlines() if "debain-12" in line]
    assert len(said) == 1


def test_an_environment_of_others_is_refused(site: Site) -> None:
    site.add_environment("bobs", "image: registry:5000/busybox-1:latest\nusers: [bob]\n")
    refused = site.alice("srun", "--container=bobs", "/bin/true")
    assert refused.code != 0
    assert "may not use" in refused.stderr
    assert site.bob("srun", "--container=bobs", "/bin/true").code == 0


def test_the_admin_comment_records_name_and_digest(site: Site) -> None:
    job = site.batch(TINY + "true\n", "--container=busybox-1")
    assert re.search(r"AdminComment=\S*busybox-1@sha256:[0-9a-f]{64}", site.job(job.id))


def test_exit_code_and_standard_input_are_the_commands(site: Site) -> None:
    ran = site.alice(
        "srun", "--container=busybox-1", "/bin/sh", "-c", "cat; exit 7", stdin="hello\n"
    )
    assert (ran.code, ran.stdout) == (7, "hello\n")


def test_a_command_is_looked_up_in_the_image(site: Site) -> None:
    assert site.alice("srun", "--container=debian-12", "where-am-i").code == 0
    assert site.alice("srun", "--container=busybox-1", "where-am-i").code != 0


def test_identity_is_the_hosts(site: Site) -> None:
    outside = site.alice("srun", "id").stdout
    assert site.alice("srun", "--container=debian-12", "id").stdout == outside
    assert "research" in outside


def test_files_of_the_user_are_there(site: Site) -> None:
    site.alice("tee", "note", stdin="from home\n")
    ran = site.alice("srun", "--container=busybox-1", "/bin/sh", "-c", "cat note; echo x >made")
    assert ran.stdout == "from home\n"
    assert site.alice("stat", "-c", "%U", "made").stdout == "alice\n"


def test_the_variables_rule(site: Site) -> None:
    path = "/home/alice/bin:/usr/local/bin:/usr/bin:/bin"
    show = "echo $PATH $DEMO_IMAGE $MINE"
    ran = site.alice(
        *("env", f"PATH={path}", "MINE=yes"),
        *("srun", "--container=debian-12", "/bin/sh", "-c", show),
    )
    assert re.match(r"/home/alice/bin:/opt/demo/bin:\S*/usr/bin:\S* yes yes$", ran.stdout)


def test_nothing_exported_is_no_harm(site: Site) -> None:
    ran = site.alice(
        *("srun", "--export=NONE", "--container=debian-12"),
        *("/bin/sh", "-c", "echo $HPCWRAP_CONTAINER $DEMO_IMAGE; command -v mpi-hello"),
    )
    assert re.match(r"debian-12@sha256:\S+ yes\n/usr/local/bin/mpi-hello", ran.stdout)


def test_what_the_script_changes_its_ranks_see(site: Site) -> None:
    job = site.batch(
        "#!/bin/bash\nexport PATH=/usr/bin:/bin; unset DEMO_IMAGE\n"
        "srun /bin/sh -c 'echo $PATH-$DEMO_IMAGE-'\n",
        "--container=debian-12",
    )
    assert job.output == "/usr/bin:/bin--\n"


def test_an_array(site: Site) -> None:
    site.alice("mkdir", "-p", "array")
    job = site.batch(
        TINY + "echo $HPCWRAP_CONTAINER >array/$SLURM_ARRAY_TASK_ID\n",
        *("--container=busybox-1", "--array=1-4"),
    )
    assert job.code == 0
    for number in range(1, 5):
        assert site.alice("cat", f"array/{number}").stdout.startswith(INSIDE)


def test_a_requeued_job_finds_its_container_again(site: Site) -> None:
    site.alice("rm", "-f", "requeued")
    ran = site.alice(
        *("sbatch", "--parsable", "--requeue", "--container=busybox-1", "--output=requeued"),
        *("--open-mode=append",),
        stdin=TINY + "echo run $SLURM_RESTART_COUNT $HPCWRAP_CONTAINER\n"
        '[ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] || sleep 100\n',
    )
    job = ran.stdout.strip()
    assert site.eventually(lambda: "run" in site.alice("cat", "requeued").stdout)
    assert site.root("ctl", "scontrol", "requeue", job).code == 0
    assert site.eventually(lambda: "JobState=PENDING" in site.job(job))
    # It would wait for two minutes.  Started in the same second, its credential would be one of
    # those that the requeue has revoked.
    time.sleep(2)
    site.root("ctl", "scontrol", "update", f"JobId={job}", "StartTime=now")
    assert site.eventually(lambda: f"run 1 {INSIDE}" in site.alice("cat", "requeued").stdout)


def test_after_the_jobs_the_nodes_are_as_before(site: Site) -> None:
    site.batch(TINY + "true\n", "--container=busybox-1", "-N2")
    for node in NODES:
        assert site.eventually(
            lambda node=node: site.root(node, "ls", "/run/hpcwrap/jobs").stdout == ""
        )
        mounts = site.root(node, "cat", "/proc/self/mountinfo").stdout
        assert not [line for line in mounts.splitlines() if "nsfs" in line or "squashfs" in line]
    assert site.eventually(lambda: site.loop_devices() == [])
    assert site.node_states() == {"idle"}


def test_times_are_kept_for_people(site: Site) -> None:
    job = site.batch("#!/bin/sh\nsrun -n2 true\n", "--container=debian-12", "-n2")
    assert site.eventually(lambda: site.root("ctl", "hpcwrap", "show", "timing", job.id).code == 0)
    text = site.root("ctl", "hpcwrap", "show", "timing", job.id).stdout
    for word in ("prolog", "join, rank 0", "join, rank 1", "epilog"):
        assert word in text
