"""Root's terminal is not the command's: what a user's command types never comes to root's shell."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
from contextlib import suppress
from typing import Callable, Tuple

import pytest

from hpcwrap import terminal

pytestmark = pytest.mark.privileged

NOBODY = 65534
WELL = 7
READY = b"ready"
"""Said by a command that wants to be typed into."""


def on_terminal(act: Callable[[], int], typed: bytes = b"") -> Tuple[str, int]:
    """Do something as a process with a terminal; what was shown there, and the code."""
    child, ours = pty.fork()
    if child == 0:
        code = 1
        try:
            code = act()
        finally:
            os._exit(code)
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
    said = b""
    try:
        while True:
            said += os.read(ours, 4096)
            if READY in said and typed:
                os.write(ours, typed)
                typed = b""
    except OSError:
        pass
    os.close(ours)
    return said.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def as_nobody(act: Callable[[], int]) -> Callable[[], int]:
    """Have it done as hpcwrap does it for root: by a child that is somebody else."""

    def become() -> None:
        code = 1
        try:
            os.setgroups([])
            os.setresuid(NOBODY, NOBODY, NOBODY)
            code = act()
        finally:
            os._exit(code)

    return lambda: terminal.run(become)  # type: ignore[arg-type]


def type_into_ours() -> int:
    """What a malicious command does, on whatever it has."""
    controlling = []
    with suppress(OSError):
        controlling = [os.open("/dev/tty", os.O_RDWR)]
    for fd in (0, 1, 2, *controlling):
        for letter in b"echo pwned\n":
            try:
                fcntl.ioctl(fd, termios.TIOCSTI, bytes([letter]))
            except OSError:
                break
    return WELL


def what_is_typed() -> bytes:
    """What root's shell would read next."""
    return os.read(0, 4096) if select.select([0], [], [], 0.5)[0] else b""


@pytest.mark.parametrize("redirected", [(), (1,), (0,), (0, 1, 2)], ids=str)
def test_a_command_cannot_type_for_root(redirected: Tuple[int, ...]) -> None:
    def act() -> int:
        root = os.dup(0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in redirected:
            os.dup2(null, fd)
        code = as_nobody(type_into_ours)()
        os.dup2(root, 0)
        return 1 if what_is_typed() else code

    assert on_terminal(act)[1] == WELL


def test_keys_size_and_output_are_passed_on() -> None:
    def talks() -> int:
        os.write(1, READY)
        size = os.get_terminal_size(0)
        said = sys.stdin.buffer.raw.readline()  # type: ignore[attr-defined]
        os.write(1, f"{said.decode().strip()} at {size.columns}x{size.lines}\n".encode())
        os.write(1, b"x" * 100_000 + b"!\n")
        return WELL

    def act() -> int:
        while os.get_terminal_size(0).columns != 99:
            pass
        sys.stdin = os.fdopen(0, closefd=False)
        before = termios.tcgetattr(0)
        code = as_nobody(talks)()
        return code if termios.tcgetattr(0) == before else 1

    said, code = on_terminal(act, b"hello\r")
    assert code == WELL
    assert "hello at 99x33\r\n" in said
    assert "x" * 100_000 + "!" in said.replace("\r", "").replace("\n", "")


def test_control_c_ends_the_command() -> None:
    def waits() -> int:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(1, READY)
        signal.pause()
        return 1

    assert on_terminal(as_nobody(waits), b"\x03")[1] == 128 + signal.SIGINT


def test_what_the_command_left_holds_nobody_up() -> None:
    def leaves() -> int:
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.execv("/bin/sleep", ["sleep", "3"])
        return WELL

    assert on_terminal(as_nobody(leaves))[1] == WELL
