"""Grid Engine's interactive jobs: commands, logins at a terminal, and what is refused."""

from __future__ import annotations

from typing import Dict, Tuple

import pytest
from cluster_site import Ran
from driver_gridengine import GridEngine

pytestmark = pytest.mark.gridengine

INSIDE = ("-l", "container=debian-12")
OUTSIDE = "/home/alice/ran-outside"
LIMIT = ("timeout", "-s", "KILL", "60")
AT_ONCE = ("-now", "n")

TERMINAL = """\
import os, pty, re, sys
child, terminal = pty.fork()
if not child:
    os.environ["TERM"] = "dumb"
    os.execvp(sys.argv[1], sys.argv[1:])
said = b""
def answer(prompt):
    global said
    while not re.search(prompt, said):
        said += os.read(terminal, 4096)
    end = re.search(prompt, said)
    sys.stdout.buffer.write(said[:end.start()])
    said = said[end.end():]
try:
    answer(rb"[$#] (\\x1b\\[6n)?$")
    for line in ["stty -echo; PS1='rea''dy> '", *sys.stdin]:
        os.write(terminal, line.strip().encode() + b"\\r")
        answer(rb"ready> (\\x1b\\[6n)?$")
except OSError:
    pass
sys.stdout.buffer.write(said)
sys.stdout.flush()
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
"""
"""Types each line of its input at the prompt of a command in a terminal; ends as the command."""

LOOK = """\
cat /etc/demo-image; test -e /etc/demo-image || echo host
echo "in ${HPCWRAP_CONTAINER%@*} with $SHELL $TERM at $(tty | tr -d 0-9) $PWD"
exit 7
"""


class Terminal:
    """A terminal of alice's on the submit host."""

    def __init__(self, grid: GridEngine) -> None:
        self.grid = grid

    def type(self, lines: str, *words: str) -> Ran:
        """Type lines into a command; what it said, and its end."""
        ran = self.grid.alice(*LIMIT, "python3", "terminal.py", *words, stdin=lines)
        return ran._replace(stdout=ran.stdout.replace("\r", ""))


@pytest.fixture(scope="session")
def terminal(grid: GridEngine) -> Terminal:
    """A terminal, its program in alice's home."""
    grid.alice("tee", "terminal.py", stdin=TERMINAL)
    return Terminal(grid)


LOGINS: Dict[str, Tuple[str, ...]] = {
    "qlogin": ("qlogin", *AT_ONCE),
    "qrsh": ("qrsh", *AT_ONCE),
}


@pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
def test_a_login_is_inside(terminal: Terminal, login: Tuple[str, ...]) -> None:
    ran = terminal.type(LOOK, *login, *INSIDE, "-q", "all.q")
    assert "debian-12\n" in ran.stdout
    assert "in debian-12 with /bin/bash dumb at /dev/pts/ /home/alice\n" in ran.stdout
    assert ran.code == 7


@pytest.mark.parametrize("login", LOGINS.values(), ids=LOGINS)
def test_a_login_gets_the_default_of_its_queue(terminal: Terminal, login: Tuple[str, ...]) -> None:
    """An image without the user's shell; and the filter does not know which of the queues."""
    ran = terminal.type(LOOK, *login, "-q", "contain*")
    assert "busybox-1\n" in ran.stdout
    assert "in busybox-1 with /bin/sh dumb at /dev/pts/ /home/alice\n" in ran.stdout
    assert ran.code == 7


def test_a_login_without_a_container_is_the_hosts(terminal: Terminal) -> None:
    ran = terminal.type(LOOK, "qlogin", *AT_ONCE, "-q", "all.q")
    assert "host\n" in ran.stdout
    assert "in  with /bin/bash dumb" in ran.stdout


def test_a_login_has_its_jobs_under_control(terminal: Terminal) -> None:
    ran = terminal.type("set -o | grep monitor\nexit\n", "qlogin", *AT_ONCE, *INSIDE)
    assert "monitor        \ton\n" in ran.stdout


def test_a_login_without_a_terminal(grid: GridEngine) -> None:
    """Its shell reads its standard input, as ssh has it."""
    words = ("qrsh", *AT_ONCE, "-pty", "n", *INSIDE)
    ran = grid.alice(*LIMIT, *words, stdin="cat /etc/demo-image\nexit 3\n")
    assert (ran.stdout, ran.code) == ("debian-12\n", 3)


def test_a_login_whose_container_cannot_be_made(terminal: Terminal) -> None:
    ran = terminal.type("", "qlogin", *AT_ONCE, "-l", "container=mountless")
    assert "hpcwrap-enter: cannot open /no/such/place for alice" in ran.stdout
    assert ran.code == 125


def test_the_exit_code_of_a_command(grid: GridEngine) -> None:
    words = (*AT_ONCE, *INSIDE, 'cat /etc/demo-image; echo "$HPCWRAP_CONTAINER"; exit 9')
    ran = grid.alice(*LIMIT, "qrsh", *words)
    assert ran.code == 9
    assert ran.stdout.startswith("debian-12\ndebian-12@sha256:")


def test_a_wrapper_of_the_users_leads_nowhere_else(grid: GridEngine) -> None:
    """qrsh_starter would start it in the starter's place."""
    words = ("QRSH_WRAPPER=/usr/bin/env", "qrsh", *AT_ONCE, *INSIDE, "cat", "/etc/demo-image")
    ran = grid.alice(*LIMIT, "env", *words)
    assert (ran.stdout, ran.code) == ("debian-12\n", 0)


def test_an_xterm_is_refused_at_submission(grid: GridEngine) -> None:
    ran = grid.alice(*LIMIT, "qsh", "-display", "x:0", *INSIDE)
    assert ran.code == 1
    assert "hpcwrap: cannot log in to a job with a container" in ran.stdout + ran.stderr


@pytest.mark.usefixtures("well")
def test_an_xterm_is_refused_on_the_node(grid: GridEngine) -> None:
    """By a name of its own it gets past the filter; the client waits for half a minute."""
    messages = "/var/spool/gridengine/qmaster/messages"
    reason = "returned because: hpcwrap: cannot log in to a job with a container"
    before = grid.root("ctl", "cat", messages).stdout.count(reason)
    words = " ".join(("qsh", "-display", "x:0", *AT_ONCE, "-N", "mine", *INSIDE))
    grid.alice("sh", "-c", f"(timeout -s KILL 60 {words}) >/dev/null 2>&1 &")
    assert grid.eventually(
        lambda: grid.root("ctl", "cat", messages).stdout.count(reason) > before, 60
    )
    assert grid.alice("ls", OUTSIDE).code != 0
