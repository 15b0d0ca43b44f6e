"""Sizes and times as people read them, and the progress of a pull."""

from __future__ import annotations

from typing import List

import pytest

from hpcwrap.human import (
    format_age,
    format_seconds,
    format_size,
    format_stages,
    parse_size,
)
from hpcwrap.image.worker import Progress
from hpcwrap.verbs.pullview import Lines, Screen


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_949, "9.9 kB"),
        (9_951, "10 kB"),
        (999_400, "999 kB"),
        (999_600, "1.0 MB"),
        (237_572_096, "238 MB"),
        (3_400_000_000, "3.4 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (0, "just now"),
        (-5, "just now"),
        (61, "a minute ago"),
        (150, "2 minutes ago"),
        (7300, "2 hours ago"),
        (86400 * 3, "3 days ago"),
        (86400 * 15, "2020-08-29"),
    ],
)
def test_ages(age: float, text: str) -> None:
    assert format_age(1_600_000_000 - age, 1_600_000_000) == text


def test_durations() -> None:
    assert format_seconds(3440) == "3.4 s"
    assert format_seconds(125_000) == "2 min 5 s"
    assert format_stages({"resolve": 40, "download": 1100, "publish": 51}) == (
        "download 1.1 s, publish 0.1 s"
    )


LAYERS = [f"sha256:{digit * 64}" for digit in "123"]
STEPS = [
    Progress("wait", "a:1", 0, 0),
    Progress("resolve", "a:1", 0, 0),
    *(Progress("download", layer, 0, 1_000_000) for layer in LAYERS),
    *(Progress("download", layer, 500_000, 1_000_000) for layer in LAYERS),
    Progress("index", "", 1234, 0),
    Progress("convert", "", 0, 9_000_000),
    Progress("convert", "", 9_000_000, 9_000_000),
]


def test_a_log_gets_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as report:
        for step in STEPS:
            report(step)
    assert capsys.readouterr().err.splitlines() == [
        "hpcwrap: waiting for another pull of a:1",
        "hpcwrap: asking the registry for a:1",
        "hpcwrap: downloading 3 layers, 3.0 MB",
        "hpcwrap: converting 9.0 MB to squashfs",
    ]


def test_a_screen_shows_a_bar_for_each_layer() -> None:
    shown: List[List[str]] = []
    screen = Screen()
    screen.bars.console.quiet = True
    with screen as report:
        for step in STEPS:
            report(step)
            shown.append([str(task.description) for task in screen.bars.tasks])
    layers = [f"layer {digit * 12}" for digit in "123"]
    assert shown[0] == ["waiting for another pull of a:1"]
    assert shown[1] == ["asking for a:1"]
    assert shown[4] == layers
    assert shown[-1] == [*layers, "reading headers", "squashfs"]
    assert all(task.completed == 500_000 for task in screen.bars.tasks[:3])


def test_many_layers_share_a_bar() -> None:
    screen = Screen()
    screen.bars.console.quiet = True
    with screen as report:
        for number in range(20):
            report(Progress("download", f"sha256:{number:064}", number, 100))
    assert [str(task.description) for task in screen.bars.tasks] == ["20 layers"]
    assert (screen.bars.tasks[0].completed, screen.bars.tasks[0].total) == (190, 2000)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("7", 7), ("1k", 1024), ("2M", 2 << 20), ("50g", 50 << 30)]
)
def test_a_size_of_the_settings(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "g", "-1", "1.5g", "5%", "\u0663", "1 g", "1gb"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_size(text)
