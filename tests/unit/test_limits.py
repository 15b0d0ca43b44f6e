"""Where a job's cgroups are made and what is written into them, from samples of real machines."""

import argparse
import json
from pathlib import Path
from typing import Iterable, List, Sequence

import pytest

from hpcwrap import epilog
from hpcwrap.container import limits
from hpcwrap.container.cgroups import Hierarchy, Level, Parent, choose_parent, parse_hierarchies
from hpcwrap.container.limitplan import Cgroup, Node, Setting, plan
from hpcwrap.errors import SiteError, UserError
from hpcwrap.human import format_binary
from hpcwrap.job import Limits
from hpcwrap.paths import JobPaths
from hpcwrap.verbs import run

ALL = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")

V1 = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
V1_MEMBER = """\
9:name=systemd:/user.slice/user-0.slice/session-2.scope
8:pids:/user.slice
6:freezer:/
4:memory:/user.slice/user-0.slice
3:cpuset:/
2:cpu,cpuacct:/user.slice
"""
V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V2_MEMBER = "0::/system.slice/pbs.service\n"
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
HYBRID_MEMBER = V1_MEMBER + "0::/user.slice/user-0.slice/session-2.scope\n"


def places(hierarchies: Iterable[Hierarchy]) -> List[str]:
    return [each.own for each in hierarchies]


# ---- where we are ----


def test_version_1_has_a_place_for_each_controller() -> None:
    found = parse_hierarchies(V1, V1_MEMBER)
    assert {name: each.own for each in found for name in each.controllers} == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
        "cpuset": "/sys/fs/cgroup/cpuset",
        "memory": "/sys/fs/cgroup/memory/user.slice/user-0.slice",
        "freezer": "/sys/fs/cgroup/freezer",
        "pids": "/sys/fs/cgroup/pids/user.slice",
        "name=systemd": "/sys/fs/cgroup/systemd/user.slice/user-0.slice/session-2.scope",
    }
    assert {each.version for each in found} == {1}


def test_version_2_has_one_place() -> None:
    found = parse_hierarchies(V2, V2_MEMBER)
    assert found == [
        Hierarchy(2, frozenset(), "/sys/fs/cgroup", "/sys/fs/cgroup/system.slice/pbs.service")
    ]


def test_a_hybrid_machine_has_both() -> None:
    found = parse_hierarchies(HYBRID, HYBRID_MEMBER)
    assert [each.version for each in found].count(2) == 1
    assert found[-1].own == "/sys/fs/cgroup/unified/user.slice/user-0.slice/session-2.scope"
    assert found[:-1] == parse_hierarchies(V1, V1_MEMBER)


def test_a_machine_in_a_container_shows_a_part_of_the_tree() -> None:
    mount = "9 1 0:2 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    member = "4:memory:/docker/abc/inner\n"
    assert places(parse_hierarchies(mount, member)) == ["/sys/fs/cgroup/memory/inner"]


@pytest.mark.parametrize("root", ["/docker/other", "/..", "/docker/ab"])
def test_a_mount_that_hides_our_place_is_left_out(root: str) -> None:
    mount = f"9 1 0:2 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert parse_hierarchies(mount, "0::/docker/abc\n") == []


def test_of_two_mounts_of_a_hierarchy_the_first_counts() -> None:
    twice = V2 + "99 24 0:30 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n"
    assert parse_hierarchies(twice, V2_MEMBER) == parse_hierarchies(V2, V2_MEMBER)


def test_odd_paths_and_lines() -> None:
    mount = "9 1 0:2 / /sys/fs/my\\040cgroup rw - cgroup2 none rw\nnonsense\n\n- - -\n"
    assert places(parse_hierarchies(mount, "0::/a:b\n\nx\n")) == ["/sys/fs/my cgroup/a:b"]
    assert parse_hierarchies("", "") == []


# ---- version 2: below whom ----


def level(path: str, enabled: Sequence[str] = (), *, processes: bool = False) -> Level:
    root = path == "/c"
    return Level(path, frozenset(ALL if root else ()), frozenset(enabled), root, processes)


def test_the_own_cgroup_is_taken_where_it_may_have_children() -> None:
    levels = [level("/c", ALL, processes=True), level("/c/a", ["memory"]), level("/c/a/b")]
    assert choose_parent(levels, ["memory"]) == Parent("/c/a/b", (("/c/a/b", ("memory",)),))


def test_beside_a_cgroup_with_processes() -> None:
    levels = [
        level("/c", ["memory"], processes=True),
        level("/c/a"),
        level("/c/a/b", (), processes=True),
    ]
    assert choose_parent(levels, ["memory"]) == Parent("/c/a", (("/c/a", ("memory",)),))


def test_controllers_are_handed_down_from_the_top() -> None:
    levels = [level("/c", processes=True), level("/c/a", ["pids"])]
    assert choose_parent(levels, ["memory", "pids"]) == Parent(
        "/c/a", (("/c", ("memory", "pids")), ("/c/a", ("memory",)))
    )


def test_one_with_processes_half_way_down_sends_us_above_it() -> None:
    levels = [level("/c", ALL), level("/c/a", (), processes=True), level("/c/a/b")]
    assert choose_parent(levels, ["cpu"]) == Parent("/c")


def test_without_controllers_any_place_will_do() -> None:
    levels = [level("/c"), level("/c/a", (), processes=True)]
    assert choose_parent(levels, []) == Parent("/c/a")


def test_a_controller_that_the_top_lacks_is_nowhere() -> None:
    top = Level("/c", frozenset(["pids"]), frozenset(), False, False)
    assert choose_parent([top], ["cpu"]) is None


# ---- what is written ----


def version_2(*controllers: str) -> List[Hierarchy]:
    top = Level("/c", frozenset(controllers), frozenset(controllers), True, True)
    return [Hierarchy(2, frozenset(), "/c", "/c", (top,))]


def written(planned: Sequence[Cgroup]) -> List[str]:
    return [
        f"{cgroup.path}/{setting.file} {setting.value}"
        for cgroup in planned
        for setting in cgroup.settings
    ]


EVERYTHING = Limits(2 << 30, 1 << 30, 1.5, "0-1", 100, 4 << 20)
NODE = Node(("1GB", "2MB"), has_swap=True)


def test_all_limits_on_version_2() -> None:
    assert written(plan(EVERYTHING, "hpcwrap-7", version_2(*ALL), NODE)) == [
        "/c/hpcwrap-7/cpu.max 150000 100000",
        "/c/hpcwrap-7/cpuset.cpus 0-1",
        "/c/hpcwrap-7/hugetlb.1GB.rsvd.max 4194304",
        "/c/hpcwrap-7/hugetlb.1GB.max 4194304",
        "/c/hpcwrap-7/hugetlb.2MB.rsvd.max 4194304",
        "/c/hpcwrap-7/hugetlb.2MB.max 4194304",
        "/c/hpcwrap-7/memory.max 2147483648",
        "/c/hpcwrap-7/memory.swap.max 1073741824",
        "/c/hpcwrap-7/pids.max 100",
    ]


def test_limits_on_version_1() -> None:
    hierarchies = parse_hierarchies(V1, V1_MEMBER)
    planned = plan(EVERYTHING._replace(hugetlb=None), "hpcwrap-7", hierarchies, NODE)
    top = "/sys/fs/cgroup"
    memory = f"{top}/memory/user.slice/user-0.slice/hpcwrap-7"
    assert planned[0] == Cgroup(f"{top}/freezer/hpcwrap-7", 1), "to end the job by"
    assert sorted(written(planned)) == sorted(
        [
            f"{top}/cpu,cpuacct/user.slice/hpcwrap-7/cpu.cfs_period_us 100000",
            f"{top}/cpu,cpuacct/user.slice/hpcwrap-7/cpu.cfs_quota_us 150000",
            f"{top}/cpuset/hpcwrap-7/cpuset.cpus 0-1",
            f"{memory}/memory.limit_in_bytes 2147483648",
            f"{memory}/memory.memsw.limit_in_bytes 3221225472",
            f"{top}/pids/user.slice/hpcwrap-7/pids.max 100",
        ]
    )
    copied = {each.path: each.copied for each in planned if each.copied}
    assert copied == {f"{top}/cpuset/hpcwrap-7": ("cpuset.cpus", "cpuset.mems")}


def test_on_a_hybrid_machine_each_controller_is_used_where_it_is() -> None:
    hierarchies = [*parse_hierarchies(V1, V1_MEMBER), *version_2("hugetlb")]
    planned = plan(Limits(memory=5, hugetlb=0), "hpcwrap-7", hierarchies, Node(("2MB",)))
    assert [each.version for each in planned] == [2, 1]
    assert written(planned)[-1].endswith("/hpcwrap-7/memory.limit_in_bytes 5")
    assert "/c/hpcwrap-7/hugetlb.2MB.max 0" in written(planned)


@pytest.mark.parametrize("hierarchies", [version_2("memory"), parse_hierarchies(V1, ""), []])
def test_a_limit_without_its_controller_is_never_let_go(hierarchies: List[Hierarchy]) -> None:
    with pytest.raises(SiteError, match=r"limit the job's cpus.* no controller cpu here"):
        plan(Limits(cpus=1), "hpcwrap-7", hierarchies, NODE)


def test_a_top_that_is_not_the_root_and_holds_processes_is_told() -> None:
    names = frozenset(["memory"])
    top = Level("/c", names, frozenset(), is_root=False, has_processes=True)
    inside = [Hierarchy(2, frozenset(), "/c", "/c", (top,))]
    with pytest.raises(SiteError, match="cannot limit the job: /c holds processes itself"):
        plan(Limits(memory=5), "hpcwrap-7", inside, NODE)
    assert plan(Limits(), "hpcwrap-7", inside, NODE)[0].path == "/c/hpcwrap-7"


def test_swap_that_cannot_be_counted_matters_only_where_there_is_swap() -> None:
    for has_swap in (True, False):
        planned = plan(Limits(5, 0), "x", version_2("memory"), Node(has_swap=has_swap))
        assert planned[0].settings[1] == Setting("memory.swap.max", "0", optional=not has_swap)


def test_sizes_of_huge_pages_are_named_as_the_kernel_does(tmp_path: Path) -> None:
    for kilobytes in (64, 2048, 1048576):
        (tmp_path / f"hugepages-{kilobytes}kB").mkdir()
    assert set(limits.huge_page_sizes(str(tmp_path))) == {"64KB", "2MB", "1GB"}
    assert limits.huge_page_sizes(str(tmp_path / "none")) == ()


# ---- the end ----


def test_a_job_without_cgroups_of_its_own_is_left_to_its_scheduler(tmp_path: Path) -> None:
    place = JobPaths("7", str(tmp_path))
    limits.join(place)
    assert limits.release(place) is None
    assert epilog.end_processes(place) is None


def test_cgroups_that_were_never_made_are_no_error_at_the_end(tmp_path: Path) -> None:
    place = JobPaths("7", str(tmp_path))
    Path(place.directory).mkdir()
    gone = str(tmp_path / "gone")
    note = {"limits": Limits(5)._asdict(), "cgroups": [[gone, 2]], "files": [f"{gone}/pids.max"]}
    Path(place.cgroups).write_text(json.dumps(note))
    assert limits.release(place) == limits.Usage(Limits(5), 0, 0)
    with pytest.raises(SiteError, match="cannot move the job into its cgroup"):
        limits.join(place)


def test_the_user_is_told_why_processes_were_killed() -> None:
    used = limits.Usage(Limits(memory=2 << 30), 3, 0)
    assert used.sentence() == (
        "the job reached its memory limit of 2 GiB: the kernel killed 3 of its processes "
        "(ask for more memory (--memory), or use fewer ranks)"
    )
    assert "no memory left" in used._replace(limits=Limits(pids=9)).sentence()
    assert used._replace(oom_kills=0).sentence() == ""


def test_limits_are_told_in_the_units_that_people_set_them_in() -> None:
    sizes = (100, 1 << 10, 1536 << 10, 2 << 30, 5 << 40)
    assert [format_binary(size) for size in sizes] == [
        "100 B",
        "1 KiB",
        "1.5 MiB",
        "2 GiB",
        "5 TiB",
    ]


# ---- options of hpcwrap run ----


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.configure(parser)
    return parser.parse_args([*words, "debian-12"])


def test_options_become_limits() -> None:
    words = [
        "--memory",
        "2g",
        "--swap",
        "0",
        "--cpus",
        "0.5",
        "--cpuset",
        "0-3,8",
        "--pids",
        "9",
        "--hugetlb",
        "4m",
    ]
    assert run.read_limits(options(*words)) == Limits(2 << 30, 0, 0.5, "0-3,8", 9, 4 << 20)
    assert run.read_limits(options()) == Limits()


def test_swap_alone_means_nothing() -> None:
    with pytest.raises(UserError, match="cannot limit swap alone"):
        run.read_limits(options("--swap", "1g"))


@pytest.mark.parametrize(
    "words",
    [
        "--memory 2x",
        "--memory 100",
        "--cpus 0",
        "--cpus nan",
        "--cpus -1",
        "--cpuset 0-",
        "--cpuset a",
        "--pids 0",
    ],
)
def test_wrong_options_say_what_is_right(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(*words.split())
    assert f"argument {words.split(maxsplit=1)[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("note", ["", "{"])
def test_a_note_that_cannot_be_read_lets_nobody_go_without_limits(
    tmp_path: Path, note: str
) -> None:
    place = JobPaths("7", str(tmp_path))
    assert limits.release(place) is None
    limits.join(place)
    Path(place.directory).mkdir()
    Path(place.cgroups).write_text(note)
    with pytest.raises(SiteError, match="cannot read"):
        limits.join(place)
