"""Environments as data: fstab lines, layers, and who may use what."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcwrap import environment
from hpcwrap.environment import Environment, Mount, Variable
from hpcwrap.errors import SiteError

ORIGIN = "site.yaml:7"


def make_environment(**changes) -> Environment:
    plain = Environment(
        name="debian-12",
        image="docker.example/debian:12",
        description="",
        mounts=(),
        variables=(),
        workdir=None,
        users=(),
        groups=(),
        origin="debian-12.yaml",
    )
    return plain._replace(**changes)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/data", Mount("/data", "/data", "bind", (), ORIGIN)),
        ("/sw /opt/sw", Mount("/sw", "/opt/sw", "bind", (), ORIGIN)),
        ("/sw\t/opt/sw  none", Mount("/sw", "/opt/sw", "bind", (), ORIGIN)),
        ("/sw /opt/sw none rbind,ro", Mount("/sw", "/opt/sw", "bind", ("rbind", "ro"), ORIGIN)),
        (
            "tmpfs /scratch tmpfs size=10g,mode=1777,noexec",
            Mount("tmpfs", "/scratch", "tmpfs", ("size=10g", "mode=1777", "noexec"), ORIGIN),
        ),
        (
            "/lustre/$USER /scratch/$UID bind nofail",
            Mount("/lustre/$USER", "/scratch/$UID", "bind", ("nofail",), ORIGIN),
        ),
        ("$HOME/.cache", Mount("$HOME/.cache", "$HOME/.cache", "bind", (), ORIGIN)),
        (r"/a\040b /c\134d", Mount("/a b", "/c\\d", "bind", (), ORIGIN)),
        (r"/caf\303\251", Mount("/café", "/café", "bind", (), ORIGIN)),
    ],
)
def test_a_mount_line_is_read_like_one_of_fstab(line: str, expected: Mount) -> None:
    assert environment.parse_mount(line, ORIGIN) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "it is not SOURCE"),
        ("/a /b none ro 0 0", "it is not SOURCE"),
        ("data", "the source 'data' is no absolute path"),
        ("$HOMES/x", "unknown variable $HOMES"),
        ("$USER/x", "is no absolute path"),
        ("/x/${USER}", "unknown variable $"),
        ("/data relative", "the target 'relative' is no absolute path"),
        ("/data /", "the root is the image's own"),
        ("/data ///", "the root is the image's own"),
        ("/data /a/../b", "the target holds .."),
        ("/data/../etc /b", "the source holds .."),
        (r"/data\000 /b", "NUL"),
        ("/data /b nfs", "unknown type nfs"),
        ("/data /b none readonly", "unknown option 'readonly'"),
        ("/data /b none ro,", "unknown option ''"),
        ("/data /b none ro,rw", "ro and rw exclude each other"),
        ("/data /b none bind,rbind", "bind and rbind exclude each other"),
        ("/data /b none size=1g", "size= is for tmpfs only"),
        ("tmpfs /b tmpfs size=much", "size=much is no size"),
        ("tmpfs /b tmpfs mode=999", "mode=999 is no mode"),
        ("tmpfs /b tmpfs rbind", "rbind has no meaning for tmpfs"),
        ("tmpfs", "the source 'tmpfs' is no absolute path"),
    ],
)
def test_a_bad_mount_line_is_the_sites_error_with_file_and_line(line: str, reason: str) -> None:
    with pytest.raises(SiteError, match="^" + ORIGIN + ": ") as caught:
        environment.parse_mount(line, ORIGIN)
    assert reason in caught.value.message


def test_a_misspelt_option_gets_a_hint() -> None:
    with pytest.raises(SiteError) as caught:
        environment.parse_mount("/data /b none noexce", ORIGIN)
    assert caught.value.hint == "did you mean noexec?"


names = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0/$"), min_size=1
).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
flags = st.lists(st.sampled_from(["ro", "nosuid", "nodev", "noexec", "nofail"]), unique=True)


@settings(max_examples=60)
@given(source=paths, target=paths, options=flags, kind=st.sampled_from(["bind", "tmpfs"]))
def test_any_mount_survives_being_written_and_read(source, target, options, kind) -> None:
    mount = Mount(source, target, kind, tuple(options), ORIGIN)
    line = environment.format_mount(mount)
    assert environment.parse_mount(line, ORIGIN) == mount
    assert len(re.findall(r"[^ \t\n]+", line)) <= 4


@settings(max_examples=60)
@given(st.text(alphabet="/aé $HOMEUSR\\0471\t\n.,ro=tmpfs"))
def test_any_line_is_either_a_mount_or_the_sites_error(line: str) -> None:
    with contextlib.suppress(SiteError):
        mount = environment.parse_mount(line, ORIGIN)
        assert environment.parse_mount(environment.format_mount(mount), ORIGIN) == mount


@pytest.mark.parametrize("name", ["debian-12", "ubuntu-16.04", "a", "7zip", "x" * 63, "a_b"])
def test_good_names(name: str) -> None:
    assert environment.is_name(name)


@pytest.mark.parametrize(
    "name", ["", "none", "Debian", ".x", "-x", "_x", "a/b", "a b", "x" * 64, "a\n", "é"]
)
def test_bad_names(name: str) -> None:
    assert not environment.is_name(name)


@pytest.mark.parametrize(
    ("users", "groups", "may"),
    [
        ((), (), True),
        (("alice",), (), True),
        (("bob",), (), False),
        ((), ("chem",), True),
        ((), ("phys",), False),
        (("bob",), ("chem",), True),
        (("alice",), ("phys",), True),
        (("bob",), ("phys",), False),
    ],
)
def test_users_and_groups_both_open_an_environment(users, groups, may: bool) -> None:
    offered = make_environment(users=users, groups=groups)
    assert environment.allowed(offered, "alice", ("staff", "chem")) is may


def test_a_refused_user_learns_which_group_is_missing() -> None:
    error = environment.refusal(make_environment(groups=("chem", "bio")), "alice")
    assert error.who == "user"
    assert error.message == (
        "alice may not use the environment debian-12: it is for members of the group chem or bio"
    )


def test_a_refusal_does_not_list_the_users_who_may() -> None:
    error = environment.refusal(make_environment(users=("bob", "carol")), "alice")
    assert "bob" not in error.sentence()
    assert "named users" in error.message


def mount(source: str, target: str) -> Mount:
    return Mount(source, target, "bind", (), ORIGIN)


def test_a_later_mount_takes_the_place_of_one_on_the_same_target() -> None:
    earlier = (mount("/a", "/data"), mount("/b", "/sw"))
    later = (mount("/c", "/data/"), mount("/d", "/new"))
    assert [m.source for m in environment.replace_mounts(earlier, later)] == ["/b", "/c", "/d"]


def test_a_later_set_or_unset_makes_earlier_changes_void() -> None:
    earlier = (
        Variable("set", "A", "1"),
        Variable("prepend", "PATH", "/x"),
        Variable("set", "B", "2"),
    )
    later = (
        Variable("unset", "A", ""),
        Variable("append", "PATH", "/y"),
        Variable("set", "B", "3"),
    )
    assert environment.replace_variables(earlier, later) == (
        Variable("prepend", "PATH", "/x"),
        *later,
    )
