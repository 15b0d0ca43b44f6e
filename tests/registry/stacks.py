"""Layers by chance: sequences of changes of every kind, the same ones for the same seed."""

from __future__ import annotations

import random
import tarfile
from types import MappingProxyType
from typing import Dict, List, Mapping, NamedTuple, Optional

from tars import CannotError, Member, Oracle, clean, make_layer

FORMATS = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
NAMES = ("a", "b", "data", "lib", "etc", "usr", "x" * 120, "caf\udce9", "new\nline", ".hidden", "ü")
IDS = (0, 0, 1000, 65534, 3_000_000, 2**32 - 2)
MODES = (0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0)
TIMES = (0, 1, 1_600_000_000, 1_650_000_000.25, 2**31, 2**32 - 1)
VALUES = ("plain", "a=b\n7 c=d", "\0\1\udcff" * 9, "x" * 1200)
KINDS = ("file",) * 6 + ("dir",) * 4 + ("symlink",) * 3 + ("link",) * 3 + ("fifo", "device", "gap")


class Layer(NamedTuple):
    """A layer with its whiteouts in front, as they should be, and the same with them at the end."""

    content: bytes
    late: bytes


def make_stack(seed: int) -> List[Layer]:
    """Layers that can be applied in order."""
    return _Maker(random.Random(seed)).stack()


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.oracle = Oracle()
        self.made: Dict[int, Member] = {}

    def stack(self) -> List[Layer]:
        return [self._layer() for _ in range(self.chance.choice((1, 2, 3, 4, 4, 6)))]

    def _layer(self) -> Layer:
        form = self.chance.choice(FORMATS)
        marks = self._marks()
        self.oracle.apply(make_layer(marks, form))
        members: List[Member] = []
        for _ in range(self.chance.choice((0, 8, 20, 40))):
            member = self._member(form)
            if member is not None and self._fits(member, form):
                members.append(member)
        return Layer(make_layer(marks + members, form), make_layer(members + marks, form))

    def _fits(self, member: Member, form: int) -> bool:
        before = dict(self.oracle.names)
        try:
            self.oracle.apply(make_layer([member], form))
        except CannotError:
            self.oracle.names = before
            return False
        if member.kind != "link":
            self.made[self.oracle.inodes] = member
        return True

    def _marks(self) -> List[Member]:
        """Whiteouts of what is there, opaque marks of directories, and a few of nothing."""
        names = [name for name in self.oracle.names if name]
        count = self.chance.randint(0, len(names) // 5)
        hidden = [hide(name) for name in self.chance.sample(names, count)]
        if self.chance.random() < 0.4:
            hidden.append(self.chance.choice(self._directories()) + "/.wh..wh..opq")
        if self.chance.random() < 0.2:
            hidden.append(hide("never/was"))
        return [Member(name.lstrip("/"), mode=0) for name in hidden]

    def _directories(self) -> List[str]:
        return [name for name, (found, _) in self.oracle.names.items() if found.kind == "dir"]

    def _name(self) -> str:
        """A name that is new, or there already, at times below a symbolic link."""
        chance = self.chance.random()
        names = [name for name in self.oracle.names if name]
        if chance < 0.15 and names:
            return self.chance.choice(names)
        parents = self._directories()
        if chance < 0.3:
            links = [n for n, (found, _) in self.oracle.names.items() if found.kind == "symlink"]
            parents = links or parents
        name = self.chance.choice(parents) + "/" + self.chance.choice(NAMES)
        if chance > 0.95:
            name += "/deep" * self.chance.choice((1, 25))
        return name.lstrip("/")

    def _member(self, form: int) -> Optional[Member]:
        kind = self.chance.choice(KINDS)
        if kind == "link":
            return self._link(form)
        if kind == "gap":
            return self._sparse() if form == tarfile.PAX_FORMAT else None
        size = self.chance.choice((0, 1, 511, 512, 513, 70_000)) if kind == "file" else 0
        return Member(
            self.chance.choice(("", "", "", "./", "/", "../")) + self._name(),
            kind,
            content=self.chance.randbytes(size),
            link=self._target() if kind == "symlink" else "",
            # In a directory that is setgid, umoci's kernel gives new ones the directory's group.
            mode=self.chance.choice(MODES) & (0o1777 if kind == "dir" else 0o7777),
            uid=self.chance.choice(IDS),
            gid=self.chance.choice(IDS),
            mtime=self.chance.choice(TIMES),
            uname=self.chance.choice(("", "root", "games")),
            pax=self._attributes(kind) if form == tarfile.PAX_FORMAT else {},
        )

    def _link(self, form: int) -> Optional[Member]:
        """A hard link, whose header says of the file what the file's own does, as tar(1)'s."""
        files = [n for n, (found, _) in self.oracle.names.items() if found.kind in ("file", "fifo")]
        if not files:
            return None
        target = self.chance.choice(files)
        known = self.made[self.oracle.names[target][1]]
        tags = {key: value for key, value in known.pax.items() if "xattr" in key}
        if tags and form != tarfile.PAX_FORMAT:
            return None
        name = self._name()
        # umoci takes away what has the name before it looks for the target.
        if f"{target}/".startswith(f"{self.oracle.follow(clean(name))}/"):
            return None
        return known._replace(name=name, kind="link", content=b"", link=target, pax=tags)

    def _sparse(self) -> Member:
        """A sparse file in GNU tar's format 1.0, the map before the data."""
        pieces = [(5000, 600), (20_000, 1), (70_000, 4096)][: self.chance.randint(1, 3)]
        lines = [len(pieces), *(number for piece in pieces for number in piece)]
        text = "".join(f"{number}\n" for number in lines).encode()
        data = self.chance.randbytes(sum(length for _, length in pieces))
        name = self._name()
        pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
        pax["GNU.sparse.realsize"] = "80000"
        return Member(
            f"GNUSparseFile.0/{len(name)}",
            content=text + bytes(-len(text) % 512) + data,
            mtime=self.chance.choice(TIMES[:3]),
            pax=pax,
        )

    def _target(self) -> str:
        choices = [*self._directories(), *self.oracle.names, "nowhere", "../../../up", "/abs/olute"]
        return self.chance.choice(("", "", "/", "../")) + (self.chance.choice(choices) or ".")

    def _attributes(self, kind: str) -> Mapping[str, str]:
        if kind not in ("file", "dir") or self.chance.random() < 0.7:
            return MappingProxyType({})
        values = {f"SCHILY.xattr.user.{n}": self.chance.choice(VALUES) for n in ("one", "tw\u00f6")}
        values["SCHILY.xattr.trusted.overlay.opaque"] = "n"
        return values


def hide(name: str) -> str:
    """The whiteout of a name."""
    parent, slash, base = name.rpartition("/")
    return f"{parent}{slash}.wh.{base}"
