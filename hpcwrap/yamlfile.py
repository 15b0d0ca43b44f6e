"""YAML documents whose every value knows its file and line.

pyyaml's composer gives the tree with its marks (YAML 1.1 as pyyaml reads it); this module walks
it once.  Only `config` and `snapshot` use it, and import it when there is a file to read: the
prolog of a warm job reads none, and pyyaml would cost it 11 of its 40 ms.
"""

from __future__ import annotations

import contextlib
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Union

import yaml

from hpcwrap.errors import SiteError
from hpcwrap.hints import closest

Scalar = Union[None, bool, int, float, str]

TAG = "tag:yaml.org,2002:"
SCALARS = tuple(TAG + kind for kind in ("null", "str", "bool", "int", "float"))


class Value(NamedTuple):
    """A value of a document: `name` is its place (``defaults.slurm``, ``mounts[2]``).

    `data` is a scalar, a list of values, or a dict of key to value; `text` is a scalar as written.
    """

    name: str
    data: Union[Scalar, List[Value], Dict[str, Value]]
    text: str
    file: str
    line: int

    @property
    def origin(self) -> str:
        """Where the value stands, ``file:line``."""
        return f"{self.file}:{self.line}"

    def error(self, message: str, hint: str = "") -> SiteError:
        """An error about this value, to be raised."""
        return SiteError(f"{self.origin}: {message}", hint)

    def string(self) -> str:
        """The value as text.  Raises SiteError when it is none, as unquoted numbers are."""
        if isinstance(self.data, str):
            return self.data
        if isinstance(self.data, (bool, int, float)):
            raise self.error(
                f"{self.name} must be text, and {self.text} is read as {self.kind()}",
                f'quote it: "{self.text}"',
            )
        raise self._other("text")

    def switch(self) -> bool:
        """The value as true or false.  Raises SiteError for anything else."""
        if isinstance(self.data, bool):
            return self.data
        raise self._other("true or false")

    def integer(self) -> int:
        """The value as a whole number.  Raises SiteError for anything else."""
        if isinstance(self.data, int) and not isinstance(self.data, bool):
            return self.data
        raise self._other("a whole number")

    def items(self) -> List[Value]:
        """The values of a list; nothing at all is an empty list.  Raises SiteError."""
        if isinstance(self.data, list):
            return self.data
        if self.data is None:
            return []
        raise self._other("a list")

    def entries(self, known: Optional[Sequence[str]] = None) -> Dict[str, Value]:
        """The entries of a mapping; nothing at all is an empty one.

        Raises SiteError when it is no mapping or, if `known` is given, holds another key.
        """
        if self.data is None:
            return {}
        if not isinstance(self.data, dict):
            raise self._other("a mapping")
        for key, value in self.data.items():
            if known is not None and key not in known:
                raise value.error(f"unknown key {value.name}", closest(key, known))
        return self.data

    def kind(self) -> str:
        """What the value is, in the words of an error."""
        if self.data is None:
            return "nothing"
        if isinstance(self.data, bool):
            return "true or false"
        if isinstance(self.data, (int, float)):
            return "a number"
        if isinstance(self.data, str):
            return "text"
        return "a list" if isinstance(self.data, list) else "a mapping"

    def _other(self, wanted: str) -> SiteError:
        shown = f" ({self.text})" if self.text else ""
        subject = self.name or "the document"
        return self.error(f"{subject} must be {wanted}, not {self.kind()}{shown}")


def read_document(path: str) -> Value:
    """Read a YAML file (UTF-8, one document); an empty one holds nothing.

    Raises SiteError with file and line for what cannot be read, is not YAML or holds a key twice.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise SiteError(f"cannot read {path}: {error.strerror}") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SiteError(f"{path}:{line}: cannot read the file: it is not UTF-8") from error
    return parse_document(text, path)


def parse_document(text: str, file: str) -> Value:
    """Parse a YAML document; `file` is its name in errors.  Raises SiteError."""
    try:
        loader = _make_loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SiteError(f"{file}:{line}: cannot read the YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SiteError(f"{file}:{line}: cannot read the YAML: {error.reason}") from error
    if root is None:
        return Value("", None, "", file, 1)
    return _Walk(loader, file).value(root, "", _line(root))


def _make_loader(text: str) -> yaml.SafeLoader:
    """The loader around libyaml, seven times as fast as the one in Python, where there is one."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)


class _Walk:
    """One walk over the nodes of a document, from pyyaml's to ours."""

    def __init__(self, loader: yaml.SafeLoader, file: str) -> None:
        self.loader = loader
        self.file = file
        self.seen: Set[int] = set()

    def value(self, node: yaml.Node, name: str, line: int) -> Value:
        # An alias is the node of its anchor once more: its lines would be wrong, and a few of
        # them in each other unfold to billions.  Environments inherit by `base:` instead.
        if id(node) in self.seen:
            raise self.error(line, f"{name} is an alias", "write the value out")
        self.seen.add(id(node))
        text = node.value if isinstance(node.value, str) else ""
        return Value(name, self.data(node, name, line), text, self.file, line)

    def data(
        self, node: yaml.Node, name: str, line: int
    ) -> Union[Scalar, List[Value], Dict[str, Value]]:
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [
                self.value(item, f"{name}[{index}]", _line(item))
                for index, item in enumerate(node.value)
            ]
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self.mapping(node, name)
        if isinstance(node, yaml.ScalarNode) and node.tag in SCALARS:
            with contextlib.suppress(ValueError, LookupError):  # `!!int x` and `!!bool x`
                return self.scalar(node)
        kind = node.tag.replace(TAG, "!!")
        raise self.error(line, f"{name} is read as {kind}, which has no use here", "quote it")

    def mapping(self, node: yaml.Node, name: str) -> Dict[str, Value]:
        entries: Dict[str, Value] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            # A key is text whatever YAML makes of it: partitions may be called 1 and on.
            key = key_node.value
            if not isinstance(key, str):
                raise self.error(line, f"a key of {name or 'the document'} is not text")
            place = f"{name}.{key}" if name else key
            if key in entries:
                raise self.error(
                    line, f"{place} is given twice", f"first on line {entries[key].line}"
                )
            entries[key] = self.value(value_node, place, line)
        return entries

    def scalar(self, node: yaml.Node) -> Scalar:
        value: Scalar = self.loader.construct_object(node)
        return value

    def error(self, line: int, message: str, hint: str = "") -> SiteError:
        return SiteError(f"{self.file}:{line}: {message}", hint)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
