"""YAML documents whose values know where they stand."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcwrap import yamlfile
from hpcwrap.errors import SiteError

DOCUMENT = """\
# a comment
store: /var/lib/hpcwrap
mounts:
  - /data
  - /sw /opt/sw

defaults:
  slurm:
    partition: {gpu: cuda-12,
                12: old}
"""


@pytest.fixture(params=["libyaml", "python"], autouse=True)
def loader(request, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader")
    elif not yaml.__with_libyaml__:
        pytest.skip("pyyaml was built without libyaml")


def parse(text: str) -> yamlfile.Value:
    return yamlfile.parse_document(text, "f.yaml")


def test_every_value_knows_its_place_and_line() -> None:
    entries = parse(DOCUMENT).entries()
    assert entries["store"].string() == "/var/lib/hpcwrap"
    assert entries["store"].origin == "f.yaml:2"
    mounts = entries["mounts"].items()
    assert [(m.name, m.string(), m.line) for m in mounts] == [
        ("mounts[0]", "/data", 4),
        ("mounts[1]", "/sw /opt/sw", 5),
    ]
    partitions = entries["defaults"].entries()["slurm"].entries()["partition"].entries()
    assert {key: (value.string(), value.line) for key, value in partitions.items()} == {
        "gpu": ("cuda-12", 9),
        "12": ("old", 10),
    }


def test_scalars_are_what_yaml_says() -> None:
    entries = parse("a: true\nb: 900\nc: 'true'\nd:\n").entries()
    assert entries["a"].switch() is True
    assert entries["b"].integer() == 900
    assert entries["c"].string() == "true"
    assert entries["d"].items() == []
    assert entries["d"].entries() == {}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_document_holds_nothing(text: str) -> None:
    assert parse(text).entries() == {}


@pytest.mark.parametrize(
    ("read", "text", "sentence"),
    [
        ("string", "a: 12.1", 'f.yaml:1: a must be text, and 12.1 is read as a number'),
        ("string", "a: no", 'f.yaml:1: a must be text, and no is read as true or false'),
        ("string", "a: 12:30", 'f.yaml:1: a must be text, and 12:30 is read as a number'),
        ("string", "\n\na:", "f.yaml:3: a must be text, not nothing"),
        ("string", "a: [b]", "f.yaml:1: a must be text, not a list"),
        ("switch", "a: 1", "f.yaml:1: a must be true or false, not a number (1)"),
        ("switch", "a: maybe", "f.yaml:1: a must be true or false, not text (maybe)"),
        ("integer", "a: true", "f.yaml:1: a must be a whole number, not true or false (true)"),
        ("integer", "a: 1.5", "f.yaml:1: a must be a whole number, not a number (1.5)"),
        ("items", "a: /data", "f.yaml:1: a must be a list, not text (/data)"),
        ("entries", "a: [b]", "f.yaml:1: a must be a mapping, not a list"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_told_with_line_and_remedy(read: str, text: str, sentence: str) -> None:
    value = parse(text).entries()["a"]
    with pytest.raises(SiteError) as caught:
        getattr(value, read)()
    assert caught.value.message == sentence


def test_an_unquoted_number_gets_the_hint_to_quote_it() -> None:
    with pytest.raises(SiteError) as caught:
        parse("a: 12:30").entries()["a"].string()
    assert caught.value.hint == 'quote it: "12:30"'


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: b: c\n", 1, "mapping values are not allowed"),
        ("x: 1\n\ta: 2\n", 2, "cannot read the YAML"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("ok: 1\nbad: \x01\n", 2, "characters are not allowed"),
        ("a: 1\nb: 2\na: 3\n", 3, "a is given twice"),
        ("? [a]\n: 1\n", 1, "a key of the document is not text"),
        ("a: &x 1\nb: *x\n", 2, "b is an alias"),
        ("a: &x [*x]\n", 1, "a[0] is an alias"),
        ("a: 2024-13-45\n", 1, "a is read as !!timestamp"),
        ("a: !!python/object:os.system x\n", 1, "a is read as !!python/object:os.system"),
        ("a: !!bool perhaps\n", 1, "a is read as !!bool"),
        ("a: !!int ''\n", 1, "a is read as !!int"),
        ("a: !mine {b: 1}\n", 1, "a is read as !mine"),
        ("a: !!map scalar\n", 1, "a is read as !!map"),
    ],
)
def test_bad_yaml_is_the_sites_error_with_file_and_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(SiteError) as caught:
        parse(text)
    assert caught.value.message.startswith(f"f.yaml:{line}: ")
    assert reason in caught.value.message


def test_an_unknown_key_gets_its_line_and_a_hint() -> None:
    with pytest.raises(SiteError) as caught:
        parse("image: x\nmonts: []\n").entries(["image", "mounts"])
    assert caught.value.sentence() == "f.yaml:2: unknown key monts (did you mean mounts?)"


def test_a_document_that_is_a_list_is_refused() -> None:
    with pytest.raises(SiteError, match=r"^f\.yaml:1: the document must be a mapping, not a list"):
        parse("- a\n").entries()


def test_files_are_read_and_their_faults_named(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"x: 1\ny: \xff\n")
    with pytest.raises(SiteError, match=r"a\.yaml:2: .* not UTF-8"):
        yamlfile.read_document(str(path))
    with pytest.raises(SiteError, match=r"cannot read .*gone\.yaml: No such file"):
        yamlfile.read_document(str(tmp_path / "gone.yaml"))


@settings(max_examples=40)
@given(st.text(alphabet="a:-[]{}&*!#'\"|>? \n\t1,%@`é\x00"))
def test_any_text_is_either_read_or_the_sites_error(text: str) -> None:
    try:
        value = parse(text)
    except SiteError as error:
        value = None
        where = error.message
    assert value is not None or where.startswith("f.yaml:")
