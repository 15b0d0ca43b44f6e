"""CDI specs as data: which devices a node has, and what a container needs for each.

CDI's SPEC.md describes the files; `cdifile` reads them.  What was read is kept on the node, for
the prolog of every job on a node with GPUs wants it, and reading YAML and libraries takes longer
than all the rest of a prolog.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from hpcwrap import __version__, paths, snapshot
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError
from hpcwrap.listing import list_files
from hpcwrap.record import publish

GPU_CLASS = "gpu"
"""The class of all vendors' GPUs: nvidia.com/gpu, amd.com/gpu, intel.com/gpu."""

ALL = "all"


class Node(NamedTuple):
    """A device node: where it is seen inside, and on the host.

    `type` is c or b, `major` and `minor` its numbers, where the spec says them; else "" and -1.
    """

    path: str
    host_path: str
    type: str = ""
    major: int = -1
    minor: int = -1


class Hook(NamedTuple):
    """A program that a container runtime would start, and where the spec says so."""

    path: str
    arguments: Tuple[str, ...]
    origin: str


class Library(NamedTuple):
    """A shared library among the mounts: where it is inside and on the host, what it is called.

    `kind` is its class and machine, `glibc` the newest version that it needs (elf.py).
    """

    path: str
    file: str
    soname: str
    kind: Tuple[int, int]
    glibc: Tuple[int, ...]


class Edits(NamedTuple):
    """What a container gets: `containerEdits`.

    `variables` are K=V.  `notes` say what is not done, and why.
    """

    variables: Tuple[str, ...] = ()
    nodes: Tuple[Node, ...] = ()
    mounts: Tuple[Mount, ...] = ()
    hooks: Tuple[Hook, ...] = ()
    libraries: Tuple[Library, ...] = ()
    notes: Tuple[str, ...] = ()

    def join(self, other: Edits) -> Edits:
        """Both, each part once."""
        pairs: Iterator[Tuple[Any, Any]] = zip(self, other)
        return Edits(*(tuple(dict.fromkeys((*first, *second))) for first, second in pairs))


class Device(NamedTuple):
    """A device of a spec.  `origin` is ``file:line``."""

    name: str
    edits: Edits
    origin: str


class Spec(NamedTuple):
    """One file: `kind` is ``vendor/class``, `common` is what each of its devices needs besides.

    `priority` is the place of its directory among all; the later one wins.
    """

    file: str
    kind: str
    priority: int
    common: Edits
    devices: Tuple[Device, ...]


class Found(NamedTuple):
    """A device by its full name, and the spec that it is from; `rival`: another of that name."""

    spec: Spec
    device: Device
    rival: str = ""

    @property
    def name(self) -> str:
        """The qualified name, vendor/class=name."""
        return f"{self.spec.kind}={self.device.name}"


class Catalogue(NamedTuple):
    """All specs of a node; `broken` are the errors of the files that cannot be used."""

    specs: Tuple[Spec, ...]
    broken: Tuple[str, ...] = ()

    def devices(self) -> Dict[str, Found]:
        """Qualified name → device: the last directory's.

        Two of one name in one directory are a conflict, which whoever asks for it is told.
        """
        found: Dict[str, Found] = {}
        for each in self._each():
            other = found.get(each.name)
            if other is None or other.spec.priority < each.spec.priority:
                found[each.name] = each
            elif other.spec.priority == each.spec.priority:
                found[each.name] = each._replace(rival=other.device.origin)
        return found

    def _each(self) -> Iterator[Found]:
        for spec in self.specs:
            for device in spec.devices:
                yield Found(spec, device)

    def find(self, name: str) -> Found:
        """The device of a qualified name.  Raises SiteError."""
        devices = self.devices()
        if name not in devices:
            known = sorted(other for other in devices if other.startswith(name.partition("=")[0]))
            hint = f"there are {', '.join(known[:8])}" if known else "see `hpcwrap cdi list`"
            raise SiteError(f"cannot find the device {name} in a CDI spec of this node", hint)
        found = devices[name]
        if found.rival:
            raise SiteError(
                f"cannot use the device {name}: {found.device.origin} and {found.rival} both "
                "describe it",
                "remove one of them; see `hpcwrap cdi check`",
            )
        return found

    def gpu_kinds(self) -> List[str]:
        """The kinds whose class says that they are GPUs."""
        kinds = (spec.kind for spec in self.specs)
        return [kind for kind in dict.fromkeys(kinds) if kind.partition("/")[2] == GPU_CLASS]

    def names(self, kind: str) -> List[str]:
        """The names of a kind's devices, without the kind."""
        return [found.device.name for found in self.devices().values() if found.spec.kind == kind]


def chosen_edits(chosen: Sequence[Found]) -> Edits:
    """What the container gets for some devices: of each spec what is common, and the devices'."""
    edits = Edits()
    for found in chosen:
        edits = edits.join(found.spec.common).join(found.device.edits)
    return edits


def load(directories: Sequence[str], kept: str = paths.CDI) -> Catalogue:
    """Read all specs of a node, from what was kept while no file has changed since.

    A file that cannot be used is among the broken ones.  Raises SiteError for a directory that
    cannot be read.
    """
    stamps = {path: snapshot.stamp(path) for path in _watched(directories)}
    catalogue = _read_kept(kept, stamps)
    if catalogue is not None:
        return catalogue
    from hpcwrap.container import cdifile

    started = time.time_ns()
    catalogue = cdifile.read_catalogue(directories)
    if snapshot.settled(stamps, started):
        _keep(kept, stamps, catalogue)
    return catalogue


def spec_files(directory: str) -> List[str]:
    """The specs of a directory, sorted.  Raises SiteError when it cannot be read."""
    return list_files(directory, (".json", ".yaml"))


def check_usable(catalogue: Catalogue) -> None:
    """Raise SiteError for a broken spec: it may describe the very GPUs that are to be hidden."""
    if catalogue.broken:
        raise SiteError(
            f"cannot tell which devices this node has: {catalogue.broken[0]}",
            "`hpcwrap cdi check` on the node shows all mistakes",
        )


def _watched(directories: Sequence[str]) -> List[str]:
    return [*directories, *(file for each in directories for file in spec_files(each))]


# What is kept


def _read_kept(path: str, stamps: snapshot.Stamps) -> Optional[Catalogue]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        if document["version"] != __version__ or document["stamps"] != stamps:
            return None
        libraries = document["libraries"].items()
        if any(snapshot.stamp(library) != then for library, then in libraries):
            return None
        return Catalogue(tuple(map(_restore_spec, document["specs"])), tuple(document["broken"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _keep(path: str, stamps: snapshot.Stamps, catalogue: Catalogue) -> None:
    """Keep what was read; a short cut only, so who may not write there goes without."""
    document = {
        "version": __version__,
        "stamps": stamps,
        "libraries": {name: snapshot.stamp(name) for name in _library_files(catalogue)},
        "specs": catalogue.specs,
        "broken": catalogue.broken,
    }
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        publish(path, json.dumps(document).encode(), 0o600)


def _library_files(catalogue: Catalogue) -> List[str]:
    """The host's files of the libraries that specs mount."""
    libraries = (library for edits in _all_edits(catalogue) for library in edits.libraries)
    return list(dict.fromkeys(library.file for library in libraries))


def _all_edits(catalogue: Catalogue) -> Iterator[Edits]:
    for spec in catalogue.specs:
        yield spec.common
        yield from (device.edits for device in spec.devices)


def _restore_spec(values: List[Any]) -> Spec:
    file, kind, priority, common, devices = values
    restored = tuple(Device(name, _restore_edits(edits), origin) for name, edits, origin in devices)
    return Spec(file, kind, priority, _restore_edits(common), restored)


def _restore_edits(values: List[Any]) -> Edits:
    variables, nodes, mounts, hooks, libraries, notes = values
    return Edits(
        tuple(variables),
        tuple(Node(*each) for each in nodes),
        tuple(_restore_mount(*each) for each in mounts),
        tuple(Hook(each[0], tuple(each[1]), each[2]) for each in hooks),
        tuple(_restore_library(*each) for each in libraries),
        tuple(notes),
    )


def _restore_mount(
    source: str, target: str, kind: str, options: Sequence[str], origin: str
) -> Mount:
    return Mount(source, target, kind, tuple(options), origin)


def _restore_library(
    path: str, file: str, soname: str, kind: Tuple[int, int], glibc: Sequence[int]
) -> Library:
    return Library(path, file, soname, (kind[0], kind[1]), tuple(glibc))
