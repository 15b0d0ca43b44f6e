"""hpcwrap cdi: the devices of this node, what is wrong with their specs, one for NVIDIA's GPUs."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from typing import Any, Dict, Iterator, List, Optional, Tuple

from hpcwrap import log, snapshot
from hpcwrap.config import settings_file
from hpcwrap.container import cdi, devices, hooks
from hpcwrap.container.cdi import Catalogue, Edits, Found
from hpcwrap.environment import format_mount
from hpcwrap.errors import EXIT_SITE, SiteError
from hpcwrap.table import print_table
from hpcwrap.verbs.pullview import count

EPILOG = """\
Specs of the Container Device Interface say what a container needs for a device.  They are read
from the directories of the setting cdi_directories, by default /etc/cdi and /var/run/cdi.  A job
gets the GPUs that its scheduler gave it; every other GPU that a spec names cannot be opened inside.

examples:
  hpcwrap cdi list                                                which devices this node has
  hpcwrap cdi show nvidia.com/gpu=0                               what a container gets for one
  hpcwrap cdi check                                               what is wrong with the specs
  hpcwrap cdi generate nvidia --output /etc/cdi/nvidia.yaml       again after each driver update
  hpcwrap run --user alice --gpus 0 cuda -- nvidia-smi -L         try it
"""
UNCLAIMED = "/dev/nvidia[0-9]*"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions of this verb."""
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the devices of this node")
    listing.add_argument("--json", action="store_true", help="print JSON")
    showing = actions.add_parser("show", help="show what a container gets for a device")
    showing.add_argument("name", metavar="VENDOR/CLASS=NAME", help="as `hpcwrap cdi list` has it")
    showing.add_argument("--json", action="store_true", help="print JSON")
    actions.add_parser("check", help="say what is wrong with the specs; the exit code is 3 then")
    generating = actions.add_parser("generate", help="write a spec, by asking the driver")
    generating.add_argument("vendor", choices=["nvidia"], metavar="nvidia")
    generating.add_argument(
        "--output", metavar="FILE", help="a .yaml of cdi_directories (default: print it)"
    )


def run(arguments: argparse.Namespace) -> int:
    """List, show, check or generate."""
    if arguments.action == "generate":
        return generate(arguments.output)
    settings = snapshot.load_settings(settings_file(arguments.config))
    catalogue = cdi.load(settings.cdi_directories)
    if arguments.action == "list":
        if not catalogue.devices() and not catalogue.broken and not arguments.json:
            log.say(f"no devices in {', '.join(settings.cdi_directories)}; {devices.GENERATE}")
            return 0
        return print_list(catalogue, as_json=arguments.json)
    if arguments.action == "show":
        return print_one(catalogue.find(arguments.name), as_json=arguments.json)
    return check(catalogue, settings.cdi_directories)


def print_list(catalogue: Catalogue, *, as_json: bool) -> int:
    """Print all devices; the exit code is 3 if a spec is broken."""
    rows = [listed(found) for _, found in sorted(catalogue.devices().items())]
    if as_json:
        print(json.dumps({"devices": rows, "broken": catalogue.broken}, indent=2))
    else:
        cells = [(row["name"], " ".join(row["nodes"]) or "-", row["origin"]) for row in rows]
        print_table(("device", "nodes", "from"), cells)
        for problem in catalogue.broken:
            log.say(problem)
    return EXIT_SITE if catalogue.broken else 0


def listed(found: Found) -> Dict[str, Any]:
    """One device of the list."""
    nodes = [node.path for node in found.device.edits.nodes]
    return {"name": found.name, "nodes": nodes, "origin": found.device.origin}


def print_one(found: Found, *, as_json: bool) -> int:
    """Print what a container gets for one device."""
    edits = cdi.chosen_edits([found])
    rows = list(parts(edits))
    if as_json:
        print(json.dumps({"name": found.name, "parts": rows}, indent=2))
    else:
        print_table(("part", "value"), [(row["part"], row["value"]) for row in rows])
    return 0


def parts(edits: Edits) -> Iterator[Dict[str, str]]:
    """What edits consist of, as people read it."""
    for node in edits.nodes:
        source = "" if node.path == node.host_path else f" (the host's {node.host_path})"
        yield {"part": "device", "value": node.path + source}
    for mount in edits.mounts:
        yield {"part": "mount", "value": format_mount(mount)}
    for target, path in hooks.links(edits.hooks):
        yield {"part": "link", "value": f"{path} to {target}"}
    for variable in edits.variables:
        yield {"part": "variable", "value": variable}
    for note in edits.notes:
        yield {"part": "note", "value": note}


def check(catalogue: Catalogue, directories: Tuple[str, ...]) -> int:
    """Tell all that is wrong, then what is not done; the exit code is 3 if anything is wrong."""
    wrong = list(dict.fromkeys(problems(catalogue)))
    for text in wrong:
        log.say(text)
    for note in dict.fromkeys(notes(catalogue)):
        print(f"note: {note}")
    devices, specs = count(len(catalogue.devices()), "device"), count(len(catalogue.specs), "spec")
    state = count(len(wrong), "problem") if wrong else "well"
    print(f"{devices} in {specs} of {', '.join(directories)}: {state}")
    return EXIT_SITE if wrong else 0


def problems(catalogue: Catalogue) -> Iterator[str]:
    """One sentence for each thing that would stop a job."""
    yield from catalogue.broken
    for found in catalogue.devices().values():
        try:
            catalogue.find(found.name)
            hooks.links(cdi.chosen_edits([found]).hooks)
        except SiteError as error:
            yield error.sentence()
    for edits, origin in all_edits(catalogue):
        paths = [node.host_path for node in edits.nodes]
        paths += [mount.source for mount in edits.mounts if mount.type == "bind"]
        yield from (f"{origin}: there is no {path}" for path in paths if not os.path.exists(path))


def all_edits(catalogue: Catalogue) -> Iterator[Tuple[Edits, str]]:
    """All edits of all specs, with where they are from."""
    for spec in catalogue.specs:
        yield spec.common, spec.file
        yield from ((device.edits, device.origin) for device in spec.devices)


def notes(catalogue: Catalogue) -> Iterator[str]:
    """What is not done, and GPUs that no spec names and that nothing hides therefore."""
    for edits, _ in all_edits(catalogue):
        yield from edits.notes
    named = {node.host_path for edits, _ in all_edits(catalogue) for node in edits.nodes}
    for path in sorted(set(glob.glob(UNCLAIMED)) - named):
        yield f"{path} is in no spec: any job can open it, as far as the scheduler lets it"


def generate(output: Optional[str]) -> int:
    """Print or publish a spec for NVIDIA's GPUs."""
    import yaml

    from hpcwrap.container import nvidia

    spec = nvidia.make_spec()
    text = yaml.safe_dump(spec, sort_keys=False)
    if output is None:
        sys.stdout.write(text)
        return 0
    publish(text, output)
    names: List[str] = [device["name"] for device in spec["devices"]]
    print(f"{output}: {', '.join(names)}")
    return 0


def publish(text: str, output: str) -> None:
    """Write a spec so that it is there whole or not at all.  Raises SiteError."""
    from hpcwrap.record import publish as put

    if not output.endswith(".yaml"):
        raise SiteError(f"cannot write a spec to {output}", "its name must end with .yaml")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), mode=0o755, exist_ok=True)
        put(output, text.encode(), 0o644)
    except OSError as error:
        raise SiteError(f"cannot write {output}: {error.strerror}") from error
