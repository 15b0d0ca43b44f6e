"""Where the time of a prolog goes: runs one, each step timed, and prints {step: ms} as JSON.

Also a program of its own, for the Python of an installation on a node: `python3 -I -c SOURCE`, with
the environment that slurmd gives to a prolog; the epilog is left to the caller.

The steps are timed from within: Python's start and end and the imports are not among them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from types import ModuleType
from typing import Any, Callable, Dict, List, Tuple

STEPS = (
    ("hpcwrap.schedulers.slurm", "read_prolog", "read the job from the environment"),
    ("hpcwrap.prolog", "drop_leftovers", "look for leftovers"),
    ("hpcwrap.submit", "choose", "settings, environment, permission"),
    ("hpcwrap.supply", "supply", "look the image up in the store"),
    ("hpcwrap.prolog", "make_plan", "plan"),
    ("hpcwrap.prolog", "make_container", "build"),
    ("hpcwrap.prolog", "leave_record", "write record and entry"),
    ("hpcwrap.prolog", "report", "syslog"),
)
WIDTH = 48
BUILD, REST = "build", "build: fork, namespaces, pins"


class Timed:
    """An operation of a plan that writes to a pipe what it took: it runs in the builder's child."""

    def __init__(self, operation: Any, pipe: int) -> None:
        self.operation = operation
        self.pipe = pipe

    def describe(self) -> str:
        """As the operation itself."""
        return str(self.operation.describe())

    def execute(self, workshop: Any) -> None:
        """Execute it and tell how long that took."""
        start = time.perf_counter()
        self.operation.execute(workshop)
        spent = (time.perf_counter() - start) * 1e3
        os.write(self.pipe, json.dumps([self.describe(), spent]).encode() + b"\n")


def short(description: str) -> str:
    """An operation without its options and without a path that fills the line."""
    words = description.split(" (", maxsplit=1)[0]
    return words if len(words) <= WIDTH else words[:WIDTH].rsplit(maxsplit=1)[0] + " …"


class Recorder:
    """Times steps by wrapping functions where their callers look them up."""

    def __init__(self) -> None:
        self.spent: Dict[str, float] = {}
        self._reader, self._writer = os.pipe()

    def wrap(self, module: ModuleType, name: str, step: str) -> None:
        """Time every call of a function of a module."""
        function: Callable[..., Any] = getattr(module, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spent[step] = (time.perf_counter() - start) * 1e3

        setattr(module, name, timed)

    def watch_operations(self, module: ModuleType) -> None:
        """Have `make_plan` of a module make plans whose operations tell their time."""
        make_plan = module.make_plan

        def make(*arguments: Any, **named: Any) -> Any:
            plan = make_plan(*arguments, **named)
            timed = tuple(Timed(operation, self._writer) for operation in plan.operations)
            return plan._replace(operations=timed)

        module.make_plan = make  # type: ignore[attr-defined]

    def operations(self) -> List[Tuple[str, float]]:
        """What the operations of the last build took, in their order."""
        os.set_blocking(self._reader, False)
        text = b""
        while True:
            try:
                part = os.read(self._reader, 1 << 16)
            except BlockingIOError:
                break
            text += part
        return [(what, spent) for what, spent in map(json.loads, text.splitlines())]

    def document(self) -> Dict[str, float]:
        """All steps in their order; the build split into its operations."""
        steps = dict(self.spent)
        operations = self.operations()
        if BUILD in steps:
            steps[REST] = steps.pop(BUILD) - sum(spent for _, spent in operations)
        for what, spent in operations:
            steps[f"build: {short(what)}"] = spent
        return steps


def main() -> None:
    """Run Slurm's prolog once and print what its steps took."""
    prolog = importlib.import_module("hpcwrap.prolog")
    adapter = importlib.import_module("hpcwrap.schedulers").load("slurm")
    recorder = Recorder()
    for module, name, step in STEPS:
        recorder.wrap(importlib.import_module(module), name, step)
    recorder.watch_operations(prolog)
    prolog.run(adapter)
    json.dump(recorder.document(), sys.stdout)


if __name__ == "__main__":
    main()
