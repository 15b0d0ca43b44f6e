"""What /sys/fs/cgroup leads to inside."""

from hpcwrap.container.cgroupview import HIERARCHIES, CgroupView, link_texts
from hpcwrap.container.environ import namespace_instructions
from hpcwrap.container.operations import Image
from hpcwrap.container.plan import Plan
from hpcwrap.job import User

HOSTS = {"memory": "", "cpu,cpuacct": "", "cpu": "cpu,cpuacct", "unified": ""}
USER = User("alice", 1, 1, (1,), "/home/alice")


def test_without_cgroups_of_the_jobs_all_are_the_hosts() -> None:
    assert link_texts(HOSTS, ()) == {
        "memory": f"{HIERARCHIES}/memory",
        "cpu,cpuacct": f"{HIERARCHIES}/cpu,cpuacct",
        "cpu": "cpu,cpuacct",
        "unified": f"{HIERARCHIES}/unified",
    }


def test_those_of_the_job_are_where_it_has_some() -> None:
    own = ("/sys/fs/cgroup/memory/a/hpcwrap-7", "/sys/fs/cgroup/cpu,cpuacct/hpcwrap-7")
    links = link_texts(HOSTS, own)
    assert links["memory"] == f"{HIERARCHIES}/memory/a/hpcwrap-7"
    assert links["cpu,cpuacct"] == f"{HIERARCHIES}/cpu,cpuacct/hpcwrap-7"
    assert links["cpu"] == "cpu,cpuacct"
    assert links["unified"] == f"{HIERARCHIES}/unified"


def plan(*views: CgroupView) -> Plan:
    return Plan(USER, user_namespace=True, image=Image("/x"), operations=views)


def test_a_cgroup_namespace_begins_where_the_mount_does() -> None:
    """Version 1 has no mount of the job's, and Slurm's cgroups are not there yet."""
    own = ("/sys/fs/cgroup/hpcwrap-7",)
    assert namespace_instructions(plan(CgroupView(own, unified=True))) == ["cgroup-namespace"]
    assert namespace_instructions(plan(CgroupView((), unified=True))) == []
    assert namespace_instructions(plan(CgroupView(own, unified=False))) == []
    assert namespace_instructions(plan()) == []
