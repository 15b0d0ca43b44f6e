"""What a person sees of a pull: lines in a log, a picture on a terminal, in a real one too."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from typing import List

import pytest
from rich.console import Console

from hpcwrap.image.worker import Progress
from hpcwrap.verbs.pullscreen import ASCII, Picture
from hpcwrap.verbs.pullview import Lines

LAYERS = [f"sha256:{digit * 64}" for digit in "123"]
MB = 1_000_000
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
STEPS = [
    Progress("wait", "n3, which pulls a:1", 0, 0),
    Progress("resolve", "a:1", 0, 0),
    *(Progress("download", layer, 0, 40 * MB) for layer in LAYERS),
    *(Progress("download", layer, 10 * MB, 40 * MB) for layer in LAYERS[:2]),
    Progress("notice", "the registry is busy: again in 4 s", 0, 0),
    Progress("notice", "", 0, 0),
    *(Progress("download", layer, 40 * MB, 40 * MB) for layer in LAYERS),
    Progress("index", "", 1234, 0),
    Progress("convert", "", 0, 9 * MB),
    Progress("convert", "", 9 * MB, 9 * MB),
]


def test_a_log_gets_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as report:
        for step in STEPS:
            report(step)
    assert capsys.readouterr().err.splitlines() == [
        "hpcwrap: waiting for n3, which pulls a:1",
        "hpcwrap: asking the registry for a:1",
        "hpcwrap: downloading 3 layers, 120 MB",
        "hpcwrap: the registry is busy: again in 4 s",
        "hpcwrap: converting 9.0 MB to squashfs",
    ]


def drawn(picture: Picture, width: int) -> List[str]:
    """The picture's lines on a terminal of so many columns."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(picture.draw(width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def picture_after(steps: List[Progress]) -> Picture:
    picture = Picture(ASCII)
    for number, step in enumerate(steps):
        picture.update(step, number / 10)
    return picture


def test_of_a_file_nothing_is_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Progress("read", "/a.sif", 0, MB), Progress("read", "/a.sif", MB, MB), *STEPS[9:]]
    assert "downl" not in "".join(drawn(picture_after(steps), 80))
    lines = Lines()
    for step in steps:
        lines.report(step)
    said = capsys.readouterr().err
    assert said == "hpcwrap: reading /a.sif\nhpcwrap: converting 9.0 MB to squashfs\n"


def test_layers_have_a_line_while_they_come_in() -> None:
    assert drawn(picture_after(STEPS[:7]), 80) == [
        "download       ######..............................     20 of 120 MB    50 MB/s",
        "  111111111111 #########...........................      10 of 40 MB",
        "  222222222222 #########...........................      10 of 40 MB",
        "  1 to come",
    ]


def test_a_narrow_terminal_gets_per_cent() -> None:
    assert drawn(picture_after(STEPS[:8]), 40) == [
        "download       ###...............  16 %",
        "  111111111111 ####..............  25 %",
        "  222222222222 ####..............  25 %",
        "  1 to come",
        "the registry is busy: again in 4 s",
    ]


def test_what_is_whole_is_folded() -> None:
    assert drawn(picture_after(STEPS), 51) == [
        "download       ##################           120 MB",
        "squashfs       ##################           9.0 MB",
        "writing the end",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("step", range(0, 30, 3))
def test_many_layers_fit_whatever_the_width(step: int, width: int) -> None:
    picture = Picture()
    for number in range(127):
        done = max(0, min(100, 40 * step - 10 * number)) * MB
        picture.update(Progress("download", f"sha256:{number:064}", done, 100 * MB), step)
    lines = drawn(picture, width)
    assert max(map(len, lines)) < width + 1
    assert len(lines) <= 10


SHOW = """
import sys
from hpcwrap.verbs.pullview import view
from test_pullview import STEPS
with view(quiet=False) as report:
    for step in STEPS:
        report(step)
"""


def seen_in_a_terminal(**environment: str) -> str:
    """What a terminal of 60 columns gets from another process."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, 60, 0, 0))
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stderr=its,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "LANG": "C.UTF-8", **environment},
    ) as child:
        os.close(its)
        text = b""
        # Linux says EIO when the last one has closed the other end (pty(7)).
        with suppress(OSError):
            while more := os.read(ours, 4096):
                text += more
    os.close(ours)
    assert child.returncode == 0
    return text.decode()


def test_a_terminal_is_given_back_as_it_was() -> None:
    text = seen_in_a_terminal(TERM="xterm")
    assert "waiting for n3, which pulls a:1" in text
    assert "\x1b[36m━" in text  # cyan
    assert text.index(HIDE_CURSOR) < text.index("━") < text.rindex(SHOW_CURSOR)
    # In the end it goes up over its lines and erases each.
    assert text.endswith(("\x1b[1A\x1b[2K", "\x1b[2K"))


def test_a_terminal_without_colours() -> None:
    text = seen_in_a_terminal(TERM="xterm", NO_COLOR="1")
    assert "━" in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(term: str) -> None:
    text = seen_in_a_terminal(TERM=term)
    assert "\x1b" not in text
    assert "hpcwrap: downloading 3 layers, 120 MB" in text
