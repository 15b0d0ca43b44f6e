"""Environments from YAML files: keys, inheritance, and every way to get them wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcwrap import environmentfile
from hpcwrap.environment import Environment, Machine, Mount, Rlimit, Variable
from hpcwrap.errors import SiteError

FULL = """\
image: registry.example/tools/debian:12
description: >
  Debian 12
  with tools
mounts:
  - /data
  - tmpfs /scratch tmpfs size=1g
variables:
  append: {MANPATH: /opt/man}
  prepend:
    PATH: /opt/bin
  set: {LANG: C.UTF-8}
  unset: [DISPLAY]
workdir: /work
users: [alice]
groups:
  - chem
"""


class Directory:
    """A directory like environments.d."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> str:
        return str(self.path / f"{name}.yaml")

    def write(self, name: str, text: str) -> None:
        Path(self.file(name)).write_text(text)

    def read(self) -> environmentfile.Found:
        return environmentfile.read_environments(str(self.path))

    def one(self, name: str) -> Environment:
        return self.read().resolved[name].environment

    def error(self, name: str) -> SiteError:
        return self.read().broken[name]


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


def test_every_key_is_read(directory: Directory) -> None:
    directory.write("full", FULL)
    file = directory.file("full")
    assert directory.one("full") == Environment(
        name="full",
        image="registry.example/tools/debian:12",
        description="Debian 12 with tools",
        mounts=(
            Mount("/data", "/data", "bind", (), f"{file}:6"),
            Mount("tmpfs", "/scratch", "tmpfs", ("size=1g",), f"{file}:7"),
        ),
        variables=(
            Variable("unset", "DISPLAY", "", f"{file}:13"),
            Variable("set", "LANG", "C.UTF-8", f"{file}:12"),
            Variable("prepend", "PATH", "/opt/bin", f"{file}:11"),
            Variable("append", "MANPATH", "/opt/man", f"{file}:9"),
        ),
        workdir="/work",
        users=("alice",),
        groups=("chem",),
        origin=file,
    )


def test_an_image_is_enough(directory: Directory) -> None:
    directory.write("a", "image: debian:12\n")
    assert directory.one("a") == Environment(
        "a", "debian:12", "", (), (), None, (), (), directory.file("a")
    )


def test_the_machine_is_inherited_key_by_key(directory: Directory) -> None:
    directory.write(
        "base",
        "image: x\ngpus: all\nmpi: host\nshm_size: 8g\nrlimits: [memlock=unlimited, nofile=4k]\n",
    )
    directory.write(
        "mine",
        "base: base\ngpus: none\nfabric: host\ndevices: [v.example/c=0]\nrlimits: [nofile=1k:2k]\n",
    )
    limits = (Rlimit("memlock", -1, -1), Rlimit("nofile", 1024, 2048))
    wanted = Machine("none", "host", "host", ("v.example/c=0",), limits, "8g")
    assert directory.one("mine").machine == wanted


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("gpus: some", "gpus must be scheduler, all or none, not 'some'"),
        ("fabric: off", "fabric must be image, host or none, not 'off'"),
        ("devices: [gpu0]", "devices must hold CDI names"),
        ("rlimits: [nofiles=1]", "rlimits: 'nofiles=1' is no NAME=SOFT"),
        ("rlimits: [nofile=2:1]", "above the hard one"),
        ("rlimits: [nofile=unlimited:1]", "above the hard one"),
        ("rlimits: [stack=much]", "neither a number"),
        ("rlimits: [nofile=1, core=0, nofile=2]", "rlimits holds nofile twice"),
        ("shm_size: big", "shm_size must be a size"),
    ],
)
def test_a_machine_that_cannot_be_meant(directory: Directory, line: str, reason: str) -> None:
    directory.write("a", f"image: x\n{line}\n")
    assert re.search(f":2: .*{reason}", directory.read().broken["a"].message)


def test_a_base_is_inherited_key_by_key(directory: Directory) -> None:
    directory.write("full", FULL)
    directory.write(
        "mine",
        "base: full\n"
        "workdir: /mine\n"
        "mounts: [/other /data]\n"
        "variables: {set: {LANG: de_DE.UTF-8}, prepend: {PATH: /mine/bin}}\n"
        "users: []\n",
    )
    mine, full, file = directory.one("mine"), directory.one("full"), directory.file("mine")
    assert (mine.image, mine.description) == (full.image, full.description)
    assert (mine.workdir, mine.base) == ("/mine", "full")
    assert (mine.users, mine.groups) == ((), ("chem",))
    assert mine.mounts == (full.mounts[1], Mount("/other", "/data", "bind", (), f"{file}:3"))
    assert [(v.action, v.name, v.value) for v in mine.variables] == [
        ("unset", "DISPLAY", ""),
        ("prepend", "PATH", "/opt/bin"),
        ("append", "MANPATH", "/opt/man"),
        ("set", "LANG", "de_DE.UTF-8"),
        ("prepend", "PATH", "/mine/bin"),
    ]
    origins = directory.read().resolved["mine"].origins
    assert origins["image"] == f"{directory.file('full')}:1"
    assert origins["workdir"] == f"{file}:2"
    assert origins["groups"] == f"{directory.file('full')}:16"


def test_bases_chain(directory: Directory) -> None:
    directory.write("a", "image: a\nworkdir: /a\ndescription: A\n")
    directory.write("b", "base: a\nimage: b\n")
    directory.write("c", "base: b\nworkdir: /c\n")
    resolved = directory.one("c")
    assert (resolved.image, resolved.workdir, resolved.description) == ("b", "/c", "A")
    assert resolved.base == "b"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("imge: x", 1, "unknown key imge"),
        ("image: 12", 1, "image must be text, and 12 is read as a number"),
        ("image: 'a b'", 1, "image must be a reference"),
        ("image: ''", 1, "image must be a reference"),
        ("image: x\nbase: gone", 2, "there is no environment 'gone' to be the base"),
        ("image: x\nbase: ../x", 2, "base must be the name of an environment"),
        ("image: x\nmounts: [data]", 2, "cannot use the mount 'data'"),
        ("image: x\nmounts:\n- /a\n- 7", 4, "mounts[1] must be text"),
        ("image: x\nmounts: [/a, /b /a]", 2, "/a is mounted twice"),
        ("image: x\nworkdir: work", 2, "workdir must be an absolute path"),
        ("image: x\nworkdir: /home/$USER", 2, "workdir must be an absolute path"),
        ("image: x\nusers: alice", 2, "users must be a list, not text (alice)"),
        ("image: x\nusers: [1000]", 2, "users[0] must be text, and 1000 is read as a number"),
        ("image: x\ngroups: ['a:b']", 2, "groups holds 'a:b'"),
        ("image: x\nvariables: {sett: {}}", 2, "unknown key variables.sett"),
        ("image: x\nvariables: [A=1]", 2, "variables must be a mapping, not a list"),
        ("image: x\nvariables:\n  set:\n    A: 1", 4, "variables.set.A must be text, and 1"),
        ("image: x\nvariables:\n  set: {A: yes}", 3, "yes is read as true or false"),
        ("image: x\nvariables:\n  set: {A: }", 3, "variables.set.A must be text, not nothing"),
        ('image: x\nvariables:\n  set: {A: "\\0"}', 3, "holds a NUL byte"),
        ("image: x\nvariables:\n  prepend: {1A: b}", 3, "'1A' cannot be the name of a variable"),
        ("image: x\nvariables:\n  unset: [A=B]", 3, "'A=B' cannot be the name of a variable"),
        ("image: x\nvariables:\n  unset: {A: b}", 3, "must be a list, not a mapping"),
        ("image: x\nvariables:\n  set: {HPCWRAP_X: a}", 3, "HPCWRAP_X is for hpcwrap to set"),
        ("image: x\nvariables:\n  set: {A: b}\n  unset: [A]", 3, "A is both unset and set"),
        ("- image", 1, "the document must be a mapping, not a list"),
        ("image: x\nimage: y", 2, "image is given twice"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(
    directory: Directory, text: str, line: int, reason: str
) -> None:
    directory.write("bad", text)
    message = directory.error("bad").message
    assert message.startswith(f"{directory.file('bad')}:{line}: ")
    assert reason in message


def test_a_loop_of_bases_is_shown(directory: Directory) -> None:
    directory.write("a", "base: b\nimage: x\n")
    directory.write("b", "\nbase: c\n")
    directory.write("c", "base: b\n")
    directory.write("self", "base: self\n")
    assert directory.error("a").message == (
        f"{directory.file('c')}:1: base leads back to itself: b → c → b"
    )
    assert "self → self" in directory.error("self").message


def test_an_error_in_a_base_breaks_its_heirs_and_names_the_base(directory: Directory) -> None:
    directory.write("base", "imge: x\n")
    directory.write("heir", "base: base\n")
    directory.write("other", "image: x\n")
    found = directory.read()
    assert found.broken["heir"] is found.broken["base"]
    assert list(found.resolved) == ["other"]


def test_an_image_is_required(directory: Directory) -> None:
    directory.write("a", "description: nothing in it\n")
    directory.write("empty", "")
    assert "the environment a has no image" in directory.error("a").message
    assert "the environment empty has no image" in directory.error("empty").message


def test_a_base_for_others_needs_no_image(directory: Directory) -> None:
    directory.write("mounts-only", "mounts: [/data]\n")
    directory.write("a", "base: mounts-only\nimage: x\n")
    found = directory.read()
    assert found.broken == {}
    assert list(found.partial) == ["mounts-only"]
    assert found.resolved["a"].environment.mounts[0].target == "/data"


@pytest.mark.parametrize(
    ("file", "key", "reason"),
    [
        ("Debian.yaml", "Debian", "'Debian' cannot be the name of an environment"),
        ("a b.yaml", "a b", "'a b' cannot be the name"),
        ("none.yaml", "none", "none cannot be an environment"),
        ("debian.yml", "debian.yml", "cannot use the file's name"),
    ],
)
def test_a_file_with_a_bad_name_is_broken_not_overlooked(
    directory: Directory, file: str, key: str, reason: str
) -> None:
    (directory.path / file).write_text("image: x\n")
    found = directory.read()
    assert reason in found.broken[key].message
    assert found.resolved == {}


def test_leftovers_of_editors_and_packages_are_skipped(directory: Directory) -> None:
    for name in (".#a.yaml", "a.yaml~", "a.yaml.rpmnew", "README"):
        (directory.path / name).write_text("][")
    assert directory.read() == ({}, {}, {})


def test_no_directory_is_no_environments(tmp_path: Path) -> None:
    assert environmentfile.read_environments(str(tmp_path / "gone")) == ({}, {}, {})


def test_a_file_in_the_directorys_place_is_the_sites_error(tmp_path: Path) -> None:
    (tmp_path / "environments.d").write_text("")
    with pytest.raises(SiteError, match=r"cannot read .*environments\.d: Not a directory"):
        environmentfile.read_environments(str(tmp_path / "environments.d"))
