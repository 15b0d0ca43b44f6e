"""References: the grammar case by case, and one canonical text for each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcwrap.errors import UserError
from hpcwrap.image.reference import Reference, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4

GOOD = [
    # text, registry, repository, tag, digest
    ("debian", "", "debian", "latest", None),
    ("debian:12", "", "debian", "12", None),
    ("library/debian:12", "", "library/debian", "12", None),
    ("docker://debian:12", "", "debian", "12", None),
    ("localhost/debian", "localhost", "debian", "latest", None),
    ("localhost:5000/debian", "localhost:5000", "debian", "latest", None),
    ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000", "a/b", "1", None),
    ("[::1]:5000/a", "[::1]:5000", "a", "latest", None),
    ("[fe80::1]/a:2", "[fe80::1]", "a", "2", None),
    ("registry.example.org/a/b/c:v1.2-3_4", "registry.example.org", "a/b/c", "v1.2-3_4", None),
    ("registry.example.org:443/a", "registry.example.org:443", "a", "latest", None),
    ("Registry/a", "Registry", "a", "latest", None),
    (f"debian@{DIGEST}", "", "debian", None, DIGEST),
    (f"debian:12@{DIGEST}", "", "debian", "12", DIGEST),
    (f"host:1/a@{DIGEST}", "host:1", "a", None, DIGEST),
    ("a__b/c.d/e--f", "", "a__b/c.d/e--f", "latest", None),
    ("oci:1.0", "", "oci", "1.0", None),
    ("dir", "", "dir", "latest", None),
    ("a:" + "x" * 128, "", "a", "x" * 128, None),
    ("x" * 255, "", "x" * 255, "latest", None),
    ("a:_1", "", "a", "_1", None),
]

BAD = [
    ("", "no repository"),
    ("docker://", "no repository"),
    (":12", "no repository"),
    ("localhost:5000/", "no repository"),
    ("Debian", "lower-case"),
    ("host.org/Debian", "lower-case"),
    ("debian:", "'' is no tag"),
    ("debian:.12", "'.12' is no tag"),
    ("debian:-", "'-' is no tag"),
    ("debian:1 2", "no tag"),
    ("a:" + "x" * 129, "is no tag"),
    ("debian@", "no sha256 digest"),
    ("debian@sha256:12", "no sha256 digest"),
    ("debian@" + DIGEST.upper(), "no sha256 digest"),
    (f"debian@{DIGEST}0", "no sha256 digest"),
    (f"debian@{DIGEST}\n", "no sha256 digest"),
    ("debian@md5:" + "0" * 32, "no sha256 digest"),
    ("a//b", "'' cannot be part"),
    ("/a", "'' cannot be part"),
    ("a/", "'' cannot be part"),
    ("a/../b", "'..' cannot be part"),
    ("a_-b", "'a_-b' cannot be part"),
    ("a___b", "cannot be part"),
    ("-a", "cannot be part"),
    ("a b", "cannot be part"),
    ("a\n", "cannot be part"),
    ("debian:12\n", "no tag"),
    ("x" * 256, "longer than 255"),
    ("host:port/a", "'host:port' is no registry"),
    ("host:123456/a", "is no registry"),
    ("-host.org/a", "is no registry"),
    ("host..org/a", "is no registry"),
    ("[::1/a", "is no registry"),
    ("https://host.org/a", "https:// is not supported"),
    ("oci:/some/layout", "oci: is not supported"),
    ("docker-archive:/a.tar", "docker-archive: is not supported"),
    ("dir:/a", "dir: is not supported"),
    ("--help", "cannot be part"),
    ("a;b", "cannot be part"),
]


@pytest.mark.parametrize(("text", "registry", "repository", "tag", "digest"), GOOD)
def test_good(text: str, registry: str, repository: str, tag: str, digest: str) -> None:
    assert parse_reference(text) == Reference(registry, repository, tag, digest)


@pytest.mark.parametrize("text", [row[0] for row in GOOD])
def test_the_canonical_text_means_the_same(text: str) -> None:
    reference = parse_reference(text)
    assert parse_reference(str(reference)) == reference
    assert str(parse_reference(str(reference))) == str(reference)


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_bad(text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_reference(text)
    assert reason in caught.value.message


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("localhost/a", True),
        ("localhost:5000/a", True),
        ("127.0.0.1/a", True),
        ("127.8.9.1:80/a", True),
        ("[::1]/a", True),
        ("[::1]:5000/a", True),
        ("a", False),
        ("localhost.example.org/a", False),
        ("[::2]:5000/a", False),
        ("10.0.0.1:5000/a", False),
    ],
)
def test_loopback(text: str, loopback: bool) -> None:
    assert parse_reference(text).loopback is loopback


COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}([._-][a-z0-9]{1,3})?", fullmatch=True)
REFERENCES = st.builds(
    Reference,
    registry=st.sampled_from(("", "localhost", "h:5000", "a.example.org", "[::1]:1")),
    repository=st.lists(COMPONENTS, min_size=2, max_size=4).map(lambda x: "/".join(["r", *x])),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.sampled_from((None, DIGEST)),
)


@given(REFERENCES)
def test_text_and_reference_go_both_ways(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert parse_reference(f"docker://{reference}") == reference


@given(st.text())
def test_any_text_is_a_reference_or_a_users_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UserError:
        return
    assert parse_reference(str(reference)) == reference
    assert not str(reference).startswith("-")
