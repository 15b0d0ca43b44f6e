"""The verbs of `tools/vm`, and the one place where its errors become exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Sequence

from clusterlib.edge import run_verb, tool_parser
from clusterlib.errors import ToolError
from imagelib.cache import DEFAULT_CACHE

from vmlib import files
from vmlib.machine import Machine

EPILOG = """\
The machine has Debian 12's kernel and packages, two emulated processors, cgroup v2 with all
controllers, soft-RoCE, the users alice and bob, and this work tree at /hpcwrap.  For example:

  tools/vm run 'cat /sys/fs/cgroup/cgroup.controllers'
  tools/vm run 'modprobe rdma_rxe && rdma link add rxe0 type rxe netdev lo; ibv_devinfo'
  tools/vm run 'cd /hpcwrap && python3 -m hpcwrap --help'
"""


def main(argv: Sequence[str]) -> int:
    """Run one verb; returns the exit code."""
    return run_verb(make_parser(), argv, "make a virtual machine's files")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--cache", metavar="DIR", default=DEFAULT_CACHE)
    parser = tool_parser(
        "vm", "A small virtual machine for what this machine's kernel lacks.", EPILOG
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, verb, text in (
        ("build", build, "make kernel, initramfs and root, unless they are in the cache"),
        ("path", path, "print the directory that they are in"),
        ("run", run, "boot a machine, run a script in it as root, and end it"),
    ):
        one = verbs.add_parser(name, parents=[shared], help=text)
        one.set_defaults(verb=verb)
        if verb is run:
            one.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS")
            one.add_argument("script", metavar="SCRIPT", help="for bash")
    return parser


def build(options: argparse.Namespace) -> int:
    """`build`: see that the files are there, and say so: it may take a minute."""
    before = time.monotonic()
    if files.ensure_built(options.cache):
        print(f"Built in {time.monotonic() - before:.1f} s: {files.directory(options.cache)}")
    else:
        print("The virtual machine's files are in the cache.")
    return 0


def path(options: argparse.Namespace) -> int:
    """`path`: where the files are."""
    found = files.directory(options.cache)
    if not os.path.isdir(found):
        raise ToolError("cannot find the virtual machine's files: build them (tools/vm build)")
    print(found)
    return 0


def run(options: argparse.Namespace) -> int:
    """`run`: one script in a fresh machine; its exit code is ours."""
    files.ensure_built(options.cache)
    machine = Machine(files.files(files.directory(options.cache)))
    try:
        machine.start()
        done = machine.run(options.script, options.timeout)
    finally:
        machine.stop()
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.code
