"""docs/schedulers.md says what the drivers say."""

import driver
import table

REMEDY = "run: .venv/bin/python tests/schedulers/table.py"


def test_the_guides_tables_are_the_drivers() -> None:
    text = table.GUIDE.read_text()
    assert table.rewritten(text) == text, REMEDY


def test_every_driver_says_what_it_cannot_in_words_of_the_suite() -> None:
    for name, made in table.drivers().items():
        assert name == made.NAME
        assert set(made.CANNOT) <= set(driver.FEATURES), name
        assert all(made.CANNOT.values()), "a reason for each"
