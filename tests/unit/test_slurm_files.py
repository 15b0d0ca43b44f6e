"""What Slurm's files lack, and the lines that mend it."""

from __future__ import annotations

import grp
import os
import pathlib
import pwd
from typing import Dict, List

import pytest

from hpcwrap.config import Settings
from hpcwrap.environment import UNLIMITED, Rlimit
from hpcwrap.finding import MISSING, NOTE, WELL, WRONG, is_well
from hpcwrap.schedulers import slurm_accounts, slurm_files
from hpcwrap.schedulers.slurm_files import Place
from hpcwrap.verbs import setup_host, setup_slurm


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    share = "/opt/hpcwrap/share/hpcwrap"
    return Place(
        prolog=f"{share}/prolog/slurm.sh",
        epilog=f"{share}/epilog/slurm.sh",
        filter=f"{share}/submit/slurm.lua",
        plugin="/opt/hpcwrap/lib/hpcwrap/spank_hpcwrap.so",
        table="/var/lib/hpcwrap/slurm_table.lua",
        directory=str(tmp_path),
    )


def states(values: Dict[str, str], place: Place) -> Dict[str, str]:
    return {finding.what: finding.state for finding in slurm_files.check_conf(values, place)}


def test_scontrols_answer_and_the_file_read_alike() -> None:
    scontrol = (
        "Configuration data as of 2026-01-01T00:00:00\n"
        "Epilog                  = (null)\n"
        "Prolog                  = /a b/c\n"
        "PrologFlags             = Alloc,Contain\n"
        "Slurmctld(primary) at ctl is UP\n"
    )
    assert slurm_files.parse_conf(scontrol) == {"prolog": "/a b/c", "prologflags": "Alloc,Contain"}
    file = "#Prolog=/x\nPROLOG = /y # why\nPrologFlags=Alloc,\\\nContain\nNodeName=n[1-2] CPUs=2\n"
    assert slurm_files.parse_conf(file) == {
        "prolog": "/y",
        "prologflags": "Alloc,Contain",
        "nodename": "n[1-2] CPUs=2",
    }
    assert slurm_files.parse_conf("Prolog[0] = /x\nProlog=/z\n") == {"prolog": "/z"}


def test_lines_of_an_empty_file_are_all_and_then_none(place: Place) -> None:
    for file in slurm_files.FILES:
        text = slurm_files.render_lines(file, place)
        assert text.endswith("\n")
        pathlib.Path(place.path(file)).write_text("# the site's own\n" + text)
        assert slurm_files.render_lines(file, place) == ""


def test_what_a_list_holds_stays(place: Place) -> None:
    values = {"jobsubmitplugins": "defaults", "launchparameters": "slurmstepd_memlock"}
    added = dict(slurm_files.missing_settings(values, place))
    assert added["JobSubmitPlugins"] == "defaults,lua"
    assert added["LaunchParameters"] == "slurmstepd_memlock,use_interactive_step"
    assert added["PrologFlags"] == "Alloc"


@pytest.mark.parametrize(
    ("key", "value", "state"),
    [
        ("prologflags", "Contain,X11", WELL),
        ("prologflags", "Serial", WRONG),
        ("jobsubmitplugins", "throttle,lua", WELL),
        ("jobsubmitplugins", "luau", WRONG),
        ("prolog", "/opt/hpcwrap/share/hpcwrap/prolog/slurm.sh", WELL),
        ("prolog", "/site/prolog.sh", WRONG),
    ],
)
def test_values(place: Place, key: str, value: str, state: str) -> None:
    found = {what.lower(): each for what, each in states({key: value}, place).items()}
    assert found[key] == state
    assert found["epilog"] == MISSING


def test_prolog_may_be_a_pattern_over_links(place: Place, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "slurm.sh"
    script.touch()
    (tmp_path / "prolog.d").mkdir()
    (tmp_path / "prolog.d" / "50-hpcwrap.sh").symlink_to(script)
    ours = place._replace(prolog=os.path.realpath(script))
    assert states({"prolog": f"{tmp_path}/prolog.d/*"}, ours)["Prolog"] == WELL
    assert states({"prolog": f"{tmp_path}/other.d/*"}, ours)["Prolog"] == WRONG


def test_agreement() -> None:
    values = {
        "slurmdspooldir": "/var/spool/slurm/d",
        "taskprolog": "/site/task.sh",
    }
    found = slurm_files.check_agreement(values, Settings())
    assert [(each.what, each.state) for each in found] == [
        ("SlurmdSpoolDir", WRONG),
        ("TaskProlog", NOTE),
    ]
    assert slurm_files.check_agreement({}, Settings()) == []
    assert is_well(found[1:])
    assert not is_well(found)


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("", MISSING),
        ("# required /opt/hpcwrap/lib/hpcwrap/spank_hpcwrap.so", MISSING),
        ("required /opt/hpcwrap/lib/hpcwrap/spank_hpcwrap.so", WELL),
        ("required /opt/hpcwrap/lib/hpcwrap/spank_hpcwrap.so jobs=/run/x", WELL),
        ("optional /opt/hpcwrap/lib/hpcwrap/spank_hpcwrap.so", WRONG),
        ("required /old/spank_hpcwrap.so", WRONG),
    ],
)
def test_plugstack(place: Place, line: str, state: str) -> None:
    assert slurm_files.check_plugstack(f"optional other.so\n{line}\n", place).state == state


@pytest.mark.parametrize("pattern", ["{directory}/plugstack.d/*.conf", "plugstack.d/*.conf"])
def test_plugstack_may_include(place: Place, tmp_path: pathlib.Path, pattern: str) -> None:
    (tmp_path / "plugstack.d").mkdir()
    (tmp_path / "plugstack.d" / "hpcwrap.conf").write_text(f"required {place.plugin}\n")
    file = tmp_path / "plugstack.conf"
    file.write_text(f"include {pattern.format(directory=tmp_path)}\n")
    assert slurm_files.check_plugstack(slurm_files.read_plugstack(str(file)), place).state == WELL


def test_job_submit(place: Place) -> None:
    call = f'local h = dofile("{place.filter}")("t")'
    both = "h.submit(a) h.modify(b)"
    texts: List[str] = ["", f"-- {call} {both}", call, f"{call} h.submit(a)", f"{call} {both}"]
    found = [slurm_files.check_job_submit(text, place).state for text in texts]
    assert found == [MISSING, MISSING, WRONG, WRONG, WELL]


# ---- accounts ----


def test_members_are_those_listed_and_those_whose_primary_group_it_is() -> None:
    me = pwd.getpwuid(os.getuid())
    assert me.pw_uid in slurm_accounts.find_members(grp.getgrgid(me.pw_gid).gr_name)
    assert slurm_accounts.find_members("no-such-group") == []


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("passwd: files systemd\ngroup: files [SUCCESS=merge] systemd\n", True),
        ("passwd: files sss\ngroup: files\n", False),
        ("passwd: files\ngroup: files ldap # people\n", False),
        ("hosts: files dns\n", True),
    ],
)
def test_directory_services_leave_groups_to_the_prolog(
    tmp_path: pathlib.Path, text: str, complete: bool
) -> None:
    nsswitch = tmp_path / "nsswitch.conf"
    nsswitch.write_text(text)
    found = slurm_accounts.find_accounts(["root", "no-such-user"], ["root"], str(nsswitch))
    assert found.uids == {"root": 0}
    assert (found.members["root"] is not None) == complete


# ---- steps of `hpcwrap setup slurm` ----


def test_touch_goes_forward_by_whole_seconds(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "job_submit.lua"
    setup_slurm.touch(str(file))
    assert not file.exists()
    file.touch()
    times = []
    for _ in range(3):
        setup_slurm.touch(str(file))
        times.append(int(file.stat().st_mtime))
    assert times == sorted(set(times))


def test_settings_are_installed_once(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "etc" / "hpcwrap" / "hpcwrap.yaml"
    (file.parent / "environments.d").mkdir(parents=True)
    example = file.parent / "environments.d" / "example.yaml.example"
    example.write_text("the site's own\n")
    assert setup_host.install_settings(str(file)) == f"installed {file}"
    assert example.read_text() == "the site's own\n"
    file.write_text("store: /mine\n")
    assert "stays as it is" in setup_host.install_settings(str(file))
    assert file.read_text() == "store: /mine\n"


def test_table_without_the_digests_of_new_images_is_no_fault(tmp_path: pathlib.Path) -> None:
    (tmp_path / "environments.d").mkdir()
    file = tmp_path / "hpcwrap.yaml"
    file.write_text(f"store: {tmp_path}/store\n")
    (tmp_path / "environments.d" / "debian-12.yaml").write_text("image: debian:12\n")
    site = setup_slurm.load_site(str(file))
    table = setup_slurm.render_table(site)
    assert setup_slurm.check_table(table, site).state == WELL
    digest = '        ["debian-12"] = {\n            digest = "sha256:00",\n'
    older = table.replace('        ["debian-12"] = {\n', digest)
    assert older != table
    assert setup_slurm.check_table(older, site).state == NOTE
    assert setup_slurm.check_table(table.replace("debian-12", "debian-11"), site).state == WRONG
    assert setup_slurm.check_table("", site).state == MISSING


def test_a_site_that_holds_jobs_to_nothing_is_told_what_to_write() -> None:
    found = slurm_files.check_limits({"taskplugin": "task/affinity"})
    assert {finding.state for finding in found} == {NOTE}
    assert "without task/cgroup" in found[0].detail
    assert is_well(found), "it is the site's choice"


def test_each_limit_that_slurm_does_not_enforce_is_told() -> None:
    values = slurm_files.parse_conf(
        "TaskPlugin = task/cgroup,task/affinity\nProctrackType = proctrack/cgroup\n"
        "ConstrainCores = yes\nConstrainRAMSpace = no\n"
    )
    found = {finding.what: finding for finding in slurm_files.check_limits(values)}
    assert {what for what, finding in found.items() if finding.state == NOTE} == {
        *("ConstrainRAMSpace", "ConstrainSwapSpace", "ConstrainDevices")
    }
    assert found["ConstrainRAMSpace"].detail == (
        "without ConstrainRAMSpace=yes: a job may use all memory of the node"
    )


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({}, "note"),
        ({"propagateresourcelimits": "ALL"}, "note"),
        ({"propagateresourcelimits": "STACK,MEMLOCK"}, "note"),
        ({"propagateresourcelimits": "NONE"}, "ok"),
        ({"propagateresourcelimits": "STACK"}, "ok"),
        ({"propagateresourcelimits": "(null)", "propagateresourcelimitsexcept": "MEMLOCK"}, "ok"),
    ],
)
def test_whose_memlock_ranks_get(values: dict[str, str], state: str) -> None:
    assert slurm_files.check_memlock(values, Settings()).state == state
    unlimited = (Rlimit("memlock", UNLIMITED, UNLIMITED),)
    assert slurm_files.check_memlock(values, Settings(rlimits=unlimited)).state == "ok"
