"""What the command lines of the tools share: their shape, and errors that become exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Sequence

from clusterlib.errors import ToolError


def tool_parser(
    name: str, description: str, epilog: str, shared: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    """The command line of a tool, still without verbs; each of them sets `verb`, a function."""
    return argparse.ArgumentParser(
        prog=f"tools/{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=list(shared),
    )


def run_verb(parser: argparse.ArgumentParser, argv: Sequence[str], needs_root: str) -> int:
    """Run one verb; expected failures are one sentence on stderr and exit code 1.

    `needs_root` is what only root can do.
    """
    options = parser.parse_args(argv)
    try:
        if os.geteuid() != 0:
            raise ToolError(f"cannot {needs_root}: run this as root")
        return int(options.verb(options))
    except (ToolError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
