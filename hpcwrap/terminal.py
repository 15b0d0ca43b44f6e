"""Root starts a user's command: on a terminal of its own, for root's is root's alone.

What has a terminal as its controlling one may type into it (TIOCSTI of ioctl_tty(2)), and root's
shell reads that once the command has ended.  docs/decisions/0160-roots-terminal.md
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import tty
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, NoReturn, Tuple

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
KEYS = (signal.SIGINT, signal.SIGQUIT)
"""What a terminal sends its own session, and not that of the command."""

CHUNK = 4096
REST = 1 << 20
"""Bytes that are shown, at most, after the command's end; what it left running may write on."""

NONE = -1


def run(become: Callable[[], NoReturn]) -> int:
    """Have a child become a user's command, and wait for it.

    Returns its exit code, 128 + N when signal N ended it.
    """
    child, terminal = fork()
    if child == 0:
        become()
    pass_signals(child)
    if terminal != NONE:
        relay(terminal, child)
    return wait(child)


def fork() -> Tuple[int, int]:
    """Fork (fork(2)) into a session of its own: the child's number, and the way to its terminal.

    It has none where ours is not in use for all of input, output and errors, or for a job in the
    background, which would be stopped.
    """
    if all(map(os.isatty, (0, 1, 2))) and is_foreground():
        import pty

        return pty.fork()
    child = os.fork()
    if child == 0:
        os.setsid()
    return child, NONE


def is_foreground() -> bool:
    """Whether we may change our terminal."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


# ---- between the two terminals ----


def relay(terminal: int, child: int) -> None:
    """Carry what is typed and what is shown, until the child has ended."""
    end = os.pidfd_open(child)
    signal.signal(signal.SIGWINCH, lambda _number, _frame: copy_size(terminal))
    copy_size(terminal)
    os.set_blocking(terminal, False)
    with raw(), suppress(OSError):  # EIO: nobody has it open any more, pts(4)
        carry(terminal, end)
        for _ in range(REST // CHUNK):
            show(terminal)
    os.close(end)


@contextmanager
def raw() -> Iterator[None]:
    """Our terminal as a mere line: keys are the other's to understand."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def copy_size(terminal: int) -> None:
    """Give the other our terminal's size (ioctl_tty(2))."""
    with suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))


def carry(terminal: int, end: int) -> None:
    """Both ways, until `end` can be read.  Nothing is read that cannot be passed on yet."""
    typed, sources = b"", [0, terminal, end]
    while True:
        waiting = [terminal] if typed else []
        wanted = [each for each in sources if each != 0 or not typed]
        readable, writable, _ = select.select(wanted, waiting, [])
        if end in readable:
            return
        with suppress(BlockingIOError):
            if terminal in readable:
                show(terminal)
            if writable:
                typed = typed[os.write(terminal, typed) :]
        if 0 in readable:
            typed = os.read(0, CHUNK)
            if not typed:
                sources.remove(0)


def show(terminal: int) -> None:
    """Show a piece.  Raises OSError where there is none."""
    shown = os.read(terminal, CHUNK)
    while shown:
        shown = shown[os.write(1, shown) :]


# ---- signals and the end ----


def pass_signals(child: int) -> None:
    """Pass on to the child what is meant for it: of another session, it gets nothing by itself."""
    for number in PASSED_ON:
        signal.signal(number, lambda caught, _frame: os.kill(child, caught))
    for number in KEYS:
        signal.signal(number, lambda caught, _frame: send_group(child, caught))


def send_group(child: int, number: int) -> None:
    """Send a key's signal to the child's processes, as its terminal would."""
    with suppress(OSError):
        os.killpg(child, number)


def wait(child: int) -> int:
    """Wait for the command; its code, or 128 + N."""
    # Still a zombie, whose number is nobody else's, until nothing can be passed on to it any more.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    for number in (*PASSED_ON, *KEYS):
        signal.signal(number, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 128 - code if code < 0 else code
