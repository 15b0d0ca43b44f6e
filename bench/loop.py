"""Start commands in turn, many rounds of them, and time each from its start to its end.

A program of its own, given to Python as text (`-c`): it runs as ordinary users and inside nodes,
where this directory may be out of sight.  Its one argument is a JSON document:

    {"rounds": 200, "warm_up": 5, "turn": true, "commands": [{"name", "argv", "env", "cwd"}]}

{round} in arguments and variables is the number of the round.  With "turn" each round begins with
another command, so that none always follows the same one.  Prints {name: {"ms": […], "cpu": […]}},
cpu being user and system time of the command and its children, in ms.

posix_spawn(3) is a vfork in glibc: what a start costs does not depend on the size of Python.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Dict, List, Tuple

SILENT = [
    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
]


def main() -> None:
    """Time the rounds that the argument describes."""
    wanted = json.loads(sys.argv[1])
    commands, warm_up = wanted["commands"], wanted["warm_up"]
    samples: Dict[str, Dict[str, List[float]]] = {
        command["name"]: {"ms": [], "cpu": []} for command in commands
    }
    for number in range(warm_up + wanted["rounds"]):
        first = number % len(commands) if wanted["turn"] else 0
        for command in commands[first:] + commands[:first]:
            milliseconds, cpu = time_one(command, number)
            if number >= warm_up:
                samples[command["name"]]["ms"].append(milliseconds)
                samples[command["name"]]["cpu"].append(cpu)
    print(json.dumps(samples))


def time_one(command: Dict[str, Any], number: int) -> Tuple[float, float]:
    """Run one command to its end; its wall and processor time in ms."""
    argv = [fill(word, number) for word in command["argv"]]
    given = command["env"] or os.environ
    variables = {name: fill(value, number) for name, value in given.items()}
    os.chdir(command["cwd"])
    start = time.perf_counter_ns()
    child = os.posix_spawn(argv[0], argv, variables, file_actions=SILENT)
    _, status, usage = os.wait4(child, 0)
    end = time.perf_counter_ns()
    if status:
        code = os.waitstatus_to_exitcode(status)
        sys.exit(f"{command['name']}: exit code {code} of: {' '.join(argv)}")
    return (end - start) / 1e6, (usage.ru_utime + usage.ru_stime) * 1e3


def fill(text: str, number: int) -> str:
    """Put the number of the round in."""
    return text.replace("{round}", str(number))


if __name__ == "__main__":
    main()
