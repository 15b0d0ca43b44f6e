"""Settings from YAML: the rows of `config.ROWS`, layer by layer."""

from __future__ import annotations

import os
import re
from typing import Callable, Dict, List, Tuple, cast

from hpcwrap import config, paths
from hpcwrap.config import Defaults, Row, Settings, Watch, unwatched
from hpcwrap.environment import (
    MOUNT_SIZES,
    Mount,
    Rlimit,
    is_name,
    replace_mounts,
    replace_rlimits,
)
from hpcwrap.environmentfile import read_choice, read_mounts, read_rlimits, read_size, yaml_files
from hpcwrap.errors import SiteError
from hpcwrap.request import NONE
from hpcwrap.yamlfile import Value, read_document

Strings = Tuple[str, ...]
Rlimits = Tuple[Rlimit, ...]

HEADER = """\
# The site's settings for hpcwrap, described in docs/settings.md.
# Every setting is here, commented out, with its default.  `hpcwrap config` shows what counts now,
# and from which file; `hpcwrap config --check` finds mistakes.  Files in conf.d/ beside this one
# win over it; environments are in environments.d/."""


def read_settings(file: str, watch: Watch = unwatched) -> Tuple[Settings, Dict[str, str]]:
    """Read the layers of settings; returns them with the origin of each value.

    `watch` is called with each path before it is read.  Raises SiteError.
    """
    values: Dict[str, object] = {row.name: row.default for row in config.ROWS}
    origins = {row.name: config.DEFAULT for row in config.ROWS}
    for layer in _layers(file, watch):
        watch(layer)
        for value in _read_layer(layer).values():
            row = config.ROWS_BY_NAME[value.name]
            values[row.name] = _combine(row, values[row.name], PARSERS[row.kind](row, value))
            origins.update(_origins(row, value))
    settings = Settings(**values)  # type: ignore[arg-type]
    _check_together(settings, origins)
    return settings, origins


def format_defaults() -> str:
    """The shipped settings file: every setting, commented out, with its help and its default."""
    lines = [HEADER]
    for row in config.ROWS:
        lines += ["", f"# {row.help}", f"#{row.name}: {format_value(row.default)}"]
    return "\n".join(lines) + "\n"


def format_value(value: object) -> str:
    """A setting's value in YAML, on one line; for what defaults hold, not for any text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        entries = (f"{key}: {format_value(each)}" for key, each in value.items())
        return "{" + ", ".join(entries) + "}"
    if value == "":
        return '""'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    return str(value)


def _layers(file: str, watch: Watch) -> List[str]:
    """The files in the order in which they are read; a site may have none at all."""
    watch(file)
    directory = os.path.join(os.path.dirname(file), paths.DROP_INS_NAME)
    watch(directory)
    # A file that someone named must be there; a site without the usual one has the defaults.
    main = [file] if file != paths.CONFIG_FILE or os.path.exists(file) else []
    return main + yaml_files(directory)


def _read_layer(path: str) -> Dict[str, Value]:
    return read_document(path).entries([row.name for row in config.ROWS])


def _combine(row: Row, earlier: object, later: object) -> object:
    """Lists add to the earlier layers', other values take their place."""
    if row.kind == "mounts":
        return replace_mounts(cast(Tuple[Mount, ...], earlier), cast(Tuple[Mount, ...], later))
    if row.kind == "rlimits":
        return replace_rlimits(cast(Rlimits, earlier), cast(Rlimits, later))
    if row.kind == "patterns":
        return tuple(dict.fromkeys((*cast(Strings, earlier), *cast(Strings, later))))
    if row.kind == "defaults":
        return _merge_defaults(cast(Defaults, earlier), cast(Defaults, later))
    return later


def _merge_defaults(earlier: Defaults, later: Defaults) -> Defaults:
    return {
        scheduler: {
            kind: {**names, **later.get(scheduler, {}).get(kind, {})}
            for kind, names in kinds.items()
        }
        for scheduler, kinds in earlier.items()
    }


def _origins(row: Row, value: Value) -> Dict[str, str]:
    origins = {row.name: value.origin}
    if row.kind == "defaults":
        for kinds in value.entries().values():
            for names in kinds.entries().values():
                origins.update({each.name: each.origin for each in names.entries().values()})
    return origins


def _check_together(settings: Settings, origins: Dict[str, str]) -> None:
    if settings.squashfs_compression == "gzip" and settings.squashfs_level > 9:
        raise SiteError(
            f"{origins['squashfs_level']}: squashfs_level must be 1 to 9 for gzip, "
            f"not {settings.squashfs_level}"
        )


def _path(row: Row, value: Value) -> str:
    path = value.string()
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise value.error(f"{row.name} must be an absolute path without .., not {path!r}")
    return path


def _file(row: Row, value: Value) -> str:
    return _path(row, value) if value.string() else ""


def _account(row: Row, value: Value) -> str:
    name = value.string()
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise value.error(f"{row.name} must be the name of an account, not {name!r}")
    if name == "root":
        raise value.error(f"{row.name} must not be root", "images are read without privilege")
    return name


def _choice(row: Row, value: Value) -> str:
    return read_choice(value, row.choices)


def _number(row: Row, value: Value) -> int:
    number = value.integer()
    if not row.least <= number <= row.most:
        raise value.error(f"{row.name} must be {row.least} to {row.most}, not {number}")
    return number


def _size(row: Row, value: Value) -> str:
    size = value.string()
    if not re.fullmatch(MOUNT_SIZES["size"], size):
        raise value.error(f"{row.name} must be a size such as 16m, not {size!r}")
    return size


def _bytes(_row: Row, value: Value) -> str:
    return read_size(value)


def _directories(row: Row, value: Value) -> Strings:
    paths = tuple(item.string() for item in value.items())
    for item in value.items():
        _path(row, item)
    return paths


def _rlimits(_row: Row, value: Value) -> Tuple[Rlimit, ...]:
    return read_rlimits(value)


def _patterns(row: Row, value: Value) -> Strings:
    patterns = tuple(item.string() for item in value.items())
    for item in value.items():
        if not re.fullmatch(r"[!-~]{1,512}", item.string()):
            raise item.error(f"{row.name} must hold patterns without blanks, not {item.text!r}")
    return patterns


def _switch(_row: Row, value: Value) -> bool:
    return value.switch()


def _mounts(_row: Row, value: Value) -> Tuple[Mount, ...]:
    return read_mounts(value)


def _defaults(_row: Row, value: Value) -> Defaults:
    return {
        scheduler: {
            kind: {name: _default(each) for name, each in names.entries().items()}
            for kind, names in kinds.entries(config.DEFAULT_KEYS[scheduler]).items()
        }
        for scheduler, kinds in value.entries(list(config.DEFAULT_KEYS)).items()
    }


def _default(value: Value) -> str:
    name = value.string()
    if name != NONE and not is_name(name):
        raise value.error(f"{value.name} must be the name of an environment, not {name!r}")
    return name


PARSERS: Dict[str, Callable[[Row, Value], object]] = {
    "path": _path,
    "file": _file,
    "bytes": _bytes,
    "patterns": _patterns,
    "directories": _directories,
    "rlimits": _rlimits,
    "account": _account,
    "choice": _choice,
    "number": _number,
    "size": _size,
    "switch": _switch,
    "mounts": _mounts,
    "defaults": _defaults,
}
"""How the value of each kind of row is read; each raises SiteError with file and line."""
