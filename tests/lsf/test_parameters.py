"""The parser of LSB_SUB_PARM_FILE: LSF's own lines count, whatever the user's command is."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcwrap.errors import UserError
from hpcwrap.schedulers.lsf_submit import find_container, parse_parameters, read_submission

LOOK_ALIKES = (
    'LSB_SUB_ADDITIONAL="look-alike"',
    'LSB_SUB_QUEUE="look-alike"',
    'LSB_SUB_COMMAND_LINE="',
    '"',
    "LSB_SUB_MODIFY=Y",
    "$(touch /tmp/sourced)",
)
COMMANDS = st.lists(st.one_of(st.sampled_from(LOOK_ALIKES), st.text(max_size=30)), max_size=6).map(
    "\n".join
)
TEXTS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=30)


def written(command: str, queue: str = "", methods: str = "") -> str:
    """The file as volclava's bsub writes it, with LSB_SUB_COMMANDNAME=Y in lsf.conf."""
    lines = f'LSB_SUB_QUEUE="{queue}"\n' if queue else ""
    lines += f'LSB_SUB_COMMANDNAME="true"\nLSB_SUB_COMMAND_LINE="{command}"\n'
    lines += "LSB_SUB_NUM_PROCESSORS=2\nLSB_SUB_MAX_NUM_PROCESSORS=2\n"
    return lines + (f'LSB_SUB_ADDITIONAL="{methods}"\n' if methods else "")


@given(COMMANDS)
def test_what_lsf_wrote_counts(command: str) -> None:
    found = read_submission(written(command, "real", "debian-12 other"))
    assert (found.queue, found.methods) == ("real", ("debian-12", "other"))


@given(COMMANDS)
def test_nothing_in_a_command_asks_for_a_container(command: str) -> None:
    found = read_submission(written(f"{command}\n", "real"))
    assert (found.queue, found.methods) == ("real", ())


@given(TEXTS)
def test_quotes_come_back(text: str) -> None:
    quoted = text.replace("\\", "").replace('"', '\\"')
    wanted = text.replace("\\", "")
    assert parse_parameters(f'LSB_SUB_JOB_NAME="{quoted}"\n') == {"LSB_SUB_JOB_NAME": wanted}


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse_parameters(text)


@given(st.text())
def test_any_words_of_a_are_refused_or_found(text: str) -> None:
    methods = read_submission(f'LSB_SUB_ADDITIONAL="{text}"\n').methods
    with suppress(UserError):
        found = find_container(methods, {"debian-12": True})
        assert not found or found in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("debian-12", ("debian-12",)),
        ("debian-12 fluent", ("debian-12", "fluent")),
        ("container(debian-12)", ("container(debian-12)",)),
        ("fluent(a, b) container(registry:5000/x)", ("fluent(a, b)", "container(registry:5000/x)")),
    ],
)
def test_words_of_a(text: str, words: tuple[str, ...]) -> None:
    assert read_submission(f'LSB_SUB_ADDITIONAL="{text}"\n').methods == words


def test_ibms_words() -> None:
    """Names that IBM's manual has and volclava has not."""
    found = read_submission('LSB_SUB3_APP="mpi"\nLSB_SUB_QUEUE="gpu"\nLSB_SUB4_ELIGIBLE_PEND=Y\n')
    assert (found.application, found.queue) == ("mpi", "gpu")


def test_the_same_container_twice_is_one() -> None:
    assert find_container(("a", "container(a)"), {"a": True}) == "a"
