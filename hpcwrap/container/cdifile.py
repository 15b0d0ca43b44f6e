"""CDI specs from YAML and JSON files, checked as CDI's SPEC.md says, with file and line.

Loading fails on unknown fields, and on fields that the version which a spec names did not have:
so does the reference implementation, and a spec that one runtime refuses works in none.
"""

from __future__ import annotations

import json
import os
import re
from typing import Dict, List, Sequence, Tuple

from hpcwrap.container import cdi, elf
from hpcwrap.container.cdi import Catalogue, Device, Edits, Hook, Library, Node, Spec
from hpcwrap.environment import Mount
from hpcwrap.errors import SiteError
from hpcwrap.yamlfile import Value, parse_document, read_document

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")

NAME = r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?"
KIND_PART = r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
HOOKS = (
    *("prestart", "createRuntime", "createContainer", "startContainer"),
    *("poststart", "poststop"),
)
DEVICE_TYPES = {"c": "c", "u": "c", "b": "b", "p": "p"}
"""mknod(1): u is another word for c."""

SPEC_KEYS = ("cdiVersion", "kind", "annotations", "devices", "containerEdits")
DEVICE_KEYS = ("name", "annotations", "containerEdits")
EDIT_KEYS = (
    *("env", "deviceNodes", "mounts", "hooks", "intelRdt", "netDevices"),
    # SPEC.md has both spellings, the reference implementation the second.
    *("additionalGIDs", "additionalGids"),
)
NODE_KEYS = (
    *("path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"),
)
MOUNT_KEYS = ("hostPath", "containerPath", "options", "type")
HOOK_KEYS = ("hookName", "path", "args", "env", "timeout")
RDT_KEYS = (
    *("closID", "l3CacheSchema", "memBwSchema", "schema", "schemata", "enableMonitoring"),
    *("enableCMT", "enableMBM"),
)

SINCE = {
    "hostPath of a device node": "0.5.0",
    "type of a mount": "0.4.0",
    "a device's name that begins with a digit": "0.5.0",
    "annotations": "0.6.0",
    "a dot in the class": "0.6.0",
    "intelRdt": "0.7.0",
    "additionalGids": "0.7.0",
    "netDevices": "1.1.0",
    "schemata": "1.1.0",
    "enableMonitoring": "1.1.0",
}
"""What came with which version (SPEC.md, Released versions)."""

KEPT_OPTIONS = ("ro", "nosuid", "nodev", "noexec")
IGNORED_OPTIONS = (
    *("rw", "suid", "dev", "exec", "bind", "rbind", "private", "rprivate", "slave", "rslave"),
    *("shared", "rshared", "relatime", "noatime", "strictatime", "nodiratime", "sync", "async"),
)
"""Options that need no step of ours: our mounts are made so, or nobody could tell."""

NOTES = {
    "intelRdt": "intelRdt is not set: cache and memory bandwidth are the scheduler's to divide",
    "netDevices": "netDevices are not moved: a container has the network of its node",
    "additionalGids": "additionalGids are not added: a container gives its user no more rights "
    "than the user has on the node",
}

LIBRARY = re.compile(r"lib.+\.so(\.[0-9.]*)?")


def read_catalogue(directories: Sequence[str]) -> Catalogue:
    """Read the specs of all directories; a file that cannot be used becomes an error's sentence."""
    specs: List[Spec] = []
    broken: List[str] = []
    for priority, directory in enumerate(directories):
        for file in cdi.spec_files(directory):
            try:
                specs.append(read_spec(file, priority))
            except SiteError as error:
                broken.append(error.sentence())
    return Catalogue(tuple(specs), tuple(broken))


def read_spec(file: str, priority: int = 0) -> Spec:
    """Read one file.  Raises SiteError with file and line."""
    document = _read_json(file) if file.endswith(".json") else read_document(file)
    return _Reader(document).spec(file, priority)


def _read_json(file: str) -> Value:
    """JSON by the reader of YAML, which knows lines; tabs stand between JSON's words only."""
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read()
        json.loads(text)
    except OSError as error:
        raise SiteError(f"cannot read {file}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise SiteError(f"{file}:{error.lineno}: cannot read the JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise SiteError(f"{file}: cannot read the file: it is not UTF-8") from error
    return parse_document(text.replace("\t", " "), file)


class _Reader:
    """One spec: the version that it names says what it may hold."""

    def __init__(self, document: Value) -> None:
        self.document = document
        self.entries = document.entries(SPEC_KEYS)
        self.version = self._version()

    def spec(self, file: str, priority: int) -> Spec:
        kind = self._kind()
        self._since_if("annotations", self.entries)
        common = self.edits(self.entries)
        devices = [self.device(item) for item in self._need(self.document, "devices").items()]
        if not devices:
            raise self.document.error("the spec has no devices")
        names: Dict[str, str] = {}
        for device in devices:
            if device.name in names:
                raise SiteError(
                    f"{device.origin}: the device {device.name} is described twice",
                    f"first at {names[device.name]}",
                )
            names[device.name] = device.origin
        return Spec(file, kind, priority, common, tuple(devices))

    def device(self, value: Value) -> Device:
        entries = value.entries(DEVICE_KEYS)
        name = self._need(value, "name")
        if not re.fullmatch(NAME, name.string()):
            raise name.error(f"{name.string()!r} cannot be the name of a device")
        if name.string()[0].isdigit():
            self._since("a device's name that begins with a digit", name)
        self._since_if("annotations", entries)
        edits = self.edits(entries)
        if edits == Edits():
            raise value.error(f"the device {name.string()} changes nothing: no containerEdits")
        return Device(name.string(), edits, value.origin)

    def edits(self, entries: Dict[str, Value]) -> Edits:
        if "containerEdits" not in entries:
            return Edits()
        found = entries["containerEdits"].entries(EDIT_KEYS)
        mounts = tuple(self.mount(item) for item in _items(found, "mounts"))
        return Edits(
            variables=tuple(_variable(item) for item in _items(found, "env")),
            nodes=tuple(self.node(item) for item in _items(found, "deviceNodes")),
            mounts=mounts,
            hooks=tuple(_hook(item) for item in _items(found, "hooks")),
            libraries=_libraries(mounts),
            notes=self.notes(found),
        )

    def node(self, value: Value) -> Node:
        entries = value.entries(NODE_KEYS)
        path = _path(self._need(value, "path"))
        if "hostPath" in entries:
            self._since("hostPath of a device node", entries["hostPath"])
        kind = entries["type"].string() if "type" in entries else ""
        if kind and kind not in DEVICE_TYPES:
            raise entries["type"].error(f"{kind!r} is no type of a device", "write c or b")
        _check_permissions(entries)
        return Node(
            path,
            _path(entries["hostPath"]) if "hostPath" in entries else path,
            DEVICE_TYPES.get(kind, ""),
            *(entries[key].integer() if key in entries else -1 for key in ("major", "minor")),
        )

    def mount(self, value: Value) -> Mount:
        entries = value.entries(MOUNT_KEYS)
        source, target = self._need(value, "hostPath"), self._need(value, "containerPath")
        kind = entries["type"].string() if "type" in entries else ""
        if kind:
            self._since("type of a mount", entries["type"])
        if kind == "tmpfs":
            options = tuple(item.string() for item in _items(entries, "options"))
            return Mount("tmpfs", _path(target), "tmpfs", options, value.origin)
        if kind not in ("", "bind", "none"):
            raise entries["type"].error(
                f"cannot mount a {kind} for a device", "bind mounts and tmpfs are possible"
            )
        options = tuple(_option(item) for item in _items(entries, "options"))
        return Mount(_path(source), _path(target), "bind", options, value.origin)

    def notes(self, found: Dict[str, Value]) -> Tuple[str, ...]:
        notes = []
        for key, value in found.items():
            name = "additionalGids" if key == "additionalGIDs" else key
            if name in NOTES:
                self._since(name, value)
                notes.append(f"{value.origin}: {NOTES[name]}")
        if "intelRdt" in found:
            for key, value in found["intelRdt"].entries(RDT_KEYS).items():
                self._since(key, value)
        return tuple(notes)

    def _version(self) -> str:
        value = self._need(self.document, "cdiVersion")
        version = re.sub("^v", "", value.string())
        if version not in VERSIONS:
            raise value.error(
                f"cannot use a spec of version {version!r}", f"known are {', '.join(VERSIONS)}"
            )
        return version

    def _kind(self) -> str:
        value = self._need(self.document, "kind")
        kind = value.string()
        if not re.fullmatch(f"{KIND_PART}/{KIND_PART}", kind):
            raise value.error(f"kind must be vendor/class, not {kind!r}")
        if "." in kind.partition("/")[2]:
            self._since("a dot in the class", value)
        return kind

    def _need(self, value: Value, key: str) -> Value:
        entries = value.entries()
        if key not in entries:
            where = f"{value.name} " if value.name else "the spec "
            raise value.error(f"{where}has no {key}")
        return entries[key]

    def _since_if(self, key: str, entries: Dict[str, Value]) -> None:
        if key in entries and entries[key].data:
            self._since(key, entries[key])

    def _since(self, what: str, value: Value) -> None:
        since = SINCE.get(what, VERSIONS[0])
        if VERSIONS.index(self.version) < VERSIONS.index(since):
            raise value.error(
                f"{what} came with CDI {since}, and the spec says that it is {self.version}",
                f"write cdiVersion: {since}",
            )


def _items(entries: Dict[str, Value], key: str) -> List[Value]:
    return entries[key].items() if key in entries else []


def _variable(value: Value) -> str:
    text = value.string()
    if not re.match(r"[^=\0]+=[^\0]*$", text, re.DOTALL):
        raise value.error(f"{text!r} is no NAME=VALUE")
    return text


def _path(value: Value) -> str:
    path = value.string()
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise value.error(f"{value.name} must be an absolute path without .., not {path!r}")
    return path


def _check_permissions(entries: Dict[str, Value]) -> None:
    if "permissions" in entries:
        text = entries["permissions"].string()
        if text != "none" and not set(text) <= set("rwm"):
            raise entries["permissions"].error(
                f"{text!r} are no permissions of a device", "write some of rwm, or none"
            )


def _option(value: Value) -> str:
    option = value.string()
    if option not in KEPT_OPTIONS + IGNORED_OPTIONS:
        raise value.error(f"cannot mount with the option {option!r}")
    return option


def _hook(value: Value) -> Hook:
    entries = value.entries(HOOK_KEYS)
    for key in ("hookName", "path"):
        if key not in entries:
            raise value.error(f"{value.name} has no {key}")
    if entries["hookName"].string() not in HOOKS:
        raise entries["hookName"].error(f"hookName must be one of {', '.join(HOOKS)}")
    for item in _items(entries, "env"):
        _variable(item)
    if "timeout" in entries and entries["timeout"].integer() < 1:
        raise entries["timeout"].error("timeout must be at least 1 second")
    arguments = tuple(item.string() for item in _items(entries, "args"))
    return Hook(_path(entries["path"]), arguments, value.origin)


def _libraries(mounts: Sequence[Mount]) -> Tuple[Library, ...]:
    """What the libraries among the mounts are called, as far as they are there already."""
    found = []
    for mount in mounts:
        if not LIBRARY.fullmatch(os.path.basename(mount.target)):
            continue
        try:
            read = elf.read(mount.source)
        except (OSError, elf.NotElfError):
            continue
        found.append(Library(mount.target, mount.source, read.soname, read.kind, read.glibc))
    return tuple(found)
