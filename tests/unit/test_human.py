"""Sizes and times as people read them."""

from __future__ import annotations

import pytest

from hpcwrap.human import (
    format_age,
    format_seconds,
    format_size,
    format_stages,
    parse_size,
)


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


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("7", 7), ("1k", 1024), ("2M", 2 << 20), ("50g", 50 << 30)]
)
def test_a_size_of_the_settings(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "g", "-1", "1.5g", "5%", "\u0663", "1 g", "1gb"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_size(text)
