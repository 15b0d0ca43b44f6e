"""hpcwrap env: list the environments, or show one as it is after inheritance."""

from __future__ import annotations

import argparse
import json
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from hpcwrap.config import Config, load_config
from hpcwrap.environment import Environment, Machine, Variable, format_mount, format_rlimit
from hpcwrap.errors import EXIT_SITE
from hpcwrap.table import print_table

Document = Dict[str, Any]

LISTED = ("name", "image", "base", "users", "groups", "description", "origin")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the two actions of this verb."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list", help="list all environments; the exit code is 3 if one is broken"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    showing = actions.add_parser("show", help="show an environment, and where each part is from")
    showing.add_argument("name", metavar="NAME", help="name of the environment")
    showing.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """List or show."""
    loaded = load_config(arguments.config)
    if arguments.action == "list":
        return print_list(loaded, as_json=arguments.json)
    return print_one(loaded, arguments.name, as_json=arguments.json)


def print_list(loaded: Config, *, as_json: bool) -> int:
    """Print all environments by name, the unusable ones with the reason."""
    documents = sorted(listed(loaded), key=lambda document: str(document["name"]))
    if as_json:
        print(json.dumps(documents, indent=2))
    else:
        headings = ("name", "image", "base", "for", "description")
        print_table(headings, [_list_cells(document) for document in documents])
    return EXIT_SITE if loaded.broken else 0


def listed(loaded: Config) -> Iterator[Document]:
    """All environments as documents; those that no job can have hold `problem` or `note`."""
    for environment in loaded.environments.values():
        yield {key: getattr(environment, key) for key in LISTED}
    for name, error in loaded.broken.items():
        yield {"name": name, "problem": error.sentence()}
    for name in loaded.partial:
        yield {"name": name, "note": "no image: only a base for others"}


def print_one(loaded: Config, name: str, *, as_json: bool) -> int:
    """Print one environment after inheritance."""
    environment = loaded.environment(name)
    origins = loaded.environment_origins[name]
    if as_json:
        print(json.dumps(make_document(environment, origins), indent=2))
    else:
        print_table(("part", "value", "from"), show_rows(environment, origins))
    return 0


def make_document(environment: Environment, origins: Dict[str, str]) -> Document:
    """One environment as JSON has it."""
    mounts = [{**mount._asdict(), "line": format_mount(mount)} for mount in environment.mounts]
    variables = [variable._asdict() for variable in environment.variables]
    document = {**environment._asdict(), "mounts": mounts, "variables": variables}
    document["machine"] = environment.machine._asdict()
    document["machine"]["rlimits"] = [format_rlimit(each) for each in environment.machine.rlimits]
    return {**document, "origins": origins}


def show_rows(environment: Environment, origins: Dict[str, str]) -> List[Tuple[str, str, str]]:
    """One environment as the rows of a table: part, value, ``file:line``."""
    rows = [("name", environment.name, environment.origin)]
    for key in ("base", "image", "description", "workdir"):
        value = getattr(environment, key)
        rows += [(key, value, origins[key])] if value else []
    rows += [("mount", format_mount(each), each.origin) for each in environment.mounts]
    rows += [("variable", format_variable(each), each.origin) for each in environment.variables]
    rows += [(key, text, origins[key]) for key, text in machine_cells(environment.machine)]
    for key in ("users", "groups"):
        names = getattr(environment, key)
        rows += [(key, ", ".join(names), origins[key])] if names else []
    return rows


def machine_cells(machine: Machine) -> List[Tuple[str, str]]:
    """What an environment says of the machine: key and text."""
    said = {**machine._asdict(), "rlimits": [format_rlimit(each) for each in machine.rlimits]}
    return [
        (key, value if isinstance(value, str) else ", ".join(value))
        for key, value in said.items()
        if value
    ]


def format_variable(variable: Variable) -> str:
    """One change of a variable, as a person reads it."""
    if variable.action == "unset":
        return f"unset {variable.name}"
    return f"{variable.action} {variable.name}={variable.value}"


def format_audience(users: Sequence[str], groups: Sequence[str]) -> str:
    """Who may use an environment: ``everyone``, or names; groups have an @ before them."""
    return ", ".join([*users, *("@" + group for group in groups)]) or "everyone"


def _list_cells(document: Document) -> List[str]:
    name = str(document["name"])
    if "problem" in document:
        return [name, "-", "-", "nobody", f"BROKEN: {document['problem']}"]
    if "note" in document:
        return [name, "-", "-", "nobody", str(document["note"])]
    audience = format_audience(document["users"], document["groups"])
    return [name, document["image"], document["base"] or "-", audience, document["description"]]
