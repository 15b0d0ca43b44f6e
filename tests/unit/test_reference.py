"""References: the grammar case by case, and one canonical text for each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcwrap.errors import UserError
from hpcwrap.image.reference import Reference, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4

HUB = "docker.io"
ID = "0123456789abcdef" * 4

GOOD = [
    # text, registry, repository, tag, digest, canonical text
    ("debian", HUB, "library/debian", "latest", None, "debian:latest"),
    ("debian:12", HUB, "library/debian", "12", None, "debian:12"),
    ("library/debian:12", HUB, "library/debian", "12", None, "debian:12"),
    ("docker.io/debian:12", HUB, "library/debian", "12", None, "debian:12"),
    ("docker.io/library/debian:12", HUB, "library/debian", "12", None, "debian:12"),
    ("index.docker.io/debian:12", HUB, "library/debian", "12", None, "debian:12"),
    ("index.docker.io/library/debian:12", HUB, "library/debian", "12", None, "debian:12"),
    ("docker://debian:12", HUB, "library/debian", "12", None, "debian:12"),
    ("docker://docker.io/debian", HUB, "library/debian", "latest", None, "debian:latest"),
    ("grafana/grafana", HUB, "grafana/grafana", "latest", None, "grafana/grafana:latest"),
    ("docker.io/a/b:1", HUB, "a/b", "1", None, "a/b:1"),
    ("a/b/c:1", HUB, "a/b/c", "1", None, "a/b/c:1"),
    ("library/a/b:1", HUB, "library/a/b", "1", None, "library/a/b:1"),
    ("docker.io/library/library/b:1", HUB, "library/library/b", "1", None, "library/library/b:1"),
    ("docker.io/a.b/c:1", HUB, "a.b/c", "1", None, "docker.io/a.b/c:1"),
    ("docker.io/localhost/c:1", HUB, "localhost/c", "1", None, "docker.io/localhost/c:1"),
    ("docker.io", HUB, "library/docker.io", "latest", None, "docker.io:latest"),
    ("localhost", HUB, "library/localhost", "latest", None, "localhost:latest"),
    ("localhost:5000", HUB, "library/localhost", "5000", None, "localhost:5000"),
    ("docker.io:443/a:1", "docker.io:443", "a", "1", None, "docker.io:443/a:1"),
    ("localhost/debian:1", "localhost", "debian", "1", None, "localhost/debian:1"),
    ("localhost:5000/debian:1", "localhost:5000", "debian", "1", None, "localhost:5000/debian:1"),
    ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000", "a/b", "1", None, "127.0.0.1:5000/a/b:1"),
    ("10.1.2.3/a:1", "10.1.2.3", "a", "1", None, "10.1.2.3/a:1"),
    ("[::1]:5000/a:1", "[::1]:5000", "a", "1", None, "[::1]:5000/a:1"),
    ("[fe80::1]/a:2", "[fe80::1]", "a", "2", None, "[fe80::1]/a:2"),
    ("[::ffff:10.0.0.1]/a:2", "[::ffff:10.0.0.1]", "a", "2", None, "[::ffff:10.0.0.1]/a:2"),
    ("[2001:DB8::1]:1/a:2", "[2001:DB8::1]:1", "a", "2", None, "[2001:DB8::1]:1/a:2"),
    ("r.example.org/a/b/c:v1.2-3_4", "r.example.org", "a/b/c", "v1.2-3_4", None, ""),
    ("r.example.org:443/a:1", "r.example.org:443", "a", "1", None, ""),
    ("r.example.org:65535/a:1", "r.example.org:65535", "a", "1", None, ""),
    ("r.example.org/library/a:1", "r.example.org", "library/a", "1", None, ""),
    ("quay.io/a/b:1", "quay.io", "a/b", "1", None, ""),
    ("xn--bcher-kva.example/a:1", "xn--bcher-kva.example", "a", "1", None, ""),
    ("Registry/a:1", "Registry", "a", "1", None, ""),
    ("A.B/a:1", "A.B", "a", "1", None, ""),
    ("host:1/a:1", "host:1", "a", "1", None, ""),
    (f"debian@{DIGEST}", HUB, "library/debian", None, DIGEST, f"debian@{DIGEST}"),
    (f"debian:12@{DIGEST}", HUB, "library/debian", "12", DIGEST, f"debian:12@{DIGEST}"),
    (f"host:1/a@{DIGEST}", "host:1", "a", None, DIGEST, ""),
    (f"host:1/a:b@{DIGEST}", "host:1", "a", "b", DIGEST, ""),
    (f"docker://host:1/a:b@{DIGEST}", "host:1", "a", "b", DIGEST, f"host:1/a:b@{DIGEST}"),
    (f"localhost:5000@{DIGEST}", HUB, "library/localhost", "5000", DIGEST, ""),
    ("a__b/c.d/e--f:1", HUB, "a__b/c.d/e--f", "1", None, ""),
    ("a-----b:1", HUB, "library/a-----b", "1", None, ""),
    ("0/1:2", HUB, "0/1", "2", None, ""),
    ("oci:1.0", HUB, "library/oci", "1.0", None, ""),
    ("dir", HUB, "library/dir", "latest", None, "dir:latest"),
    ("a:" + "x" * 128, HUB, "library/a", "x" * 128, None, ""),
    ("a:_1", HUB, "library/a", "_1", None, ""),
    ("a:A.b-C", HUB, "library/a", "A.b-C", None, ""),
    ("x" * 247 + ":1", HUB, "library/" + "x" * 247, "1", None, ""),
    ("h.org/" + "x" * 255 + ":1", "h.org", "x" * 255, "1", None, ""),
    (f"a/{ID}:1", HUB, f"a/{ID}", "1", None, ""),
    (f"{ID}0:1", HUB, f"library/{ID}0", "1", None, ""),
]

BAD = [
    ("", "no repository"),
    ("docker://", "no repository"),
    (":12", "no repository"),
    ("@" + DIGEST, "no repository"),
    ("localhost:5000/", "no repository"),
    ("docker.io/", "no repository"),
    ("Debian", "lower-case"),
    ("host.org/Debian", "lower-case"),
    ("docker://docker://a", "'docker:' is no registry"),
    ("debian:", "'' is no tag"),
    ("debian:.12", "'.12' is no tag"),
    ("debian:-", "'-' is no tag"),
    ("debian:1 2", "no tag"),
    ("debian:ä", "no tag"),
    ("debian:12:13", "'debian:12' cannot be part"),
    ("a:" + "x" * 129, "is no tag"),
    ("debian@", "no sha256 digest"),
    ("debian@sha256:12", "no sha256 digest"),
    ("debian@" + DIGEST.upper(), "no sha256 digest"),
    (f"debian@{DIGEST}0", "no sha256 digest"),
    (f"debian@{DIGEST}@{DIGEST}", "no sha256 digest"),
    (f"debian@{DIGEST}:1", "no sha256 digest"),
    (f"debian@{DIGEST}\n", "no sha256 digest"),
    ("debian@md5:" + "0" * 32, "no sha256 digest"),
    ("debian@sha512:" + "0" * 128, "no sha256 digest"),
    (ID, "a digest without a repository"),
    (f"docker://{ID}:1", "without a repository"),
    ("a//b", "'' cannot be part"),
    ("/a", "'' cannot be part"),
    ("a/", "'' cannot be part"),
    ("a/../b", "'..' cannot be part"),
    ("a/./b", "'.' cannot be part"),
    ("a_-b", "'a_-b' cannot be part"),
    ("a___b", "cannot be part"),
    ("a..b", "cannot be part"),
    ("a_", "cannot be part"),
    ("-a", "cannot be part"),
    ("--help", "cannot be part"),
    (".a", "cannot be part"),
    ("a b", "cannot be part"),
    ("a\n", "cannot be part"),
    ("a\0b", "cannot be part"),
    ("ä", "cannot be part"),
    ("a;b", "cannot be part"),
    ("a$(b)", "cannot be part"),
    ("a%2fb", "cannot be part"),
    ("debian:12\n", "no tag"),
    ("x" * 256, "longer than 255"),
    ("x" * 248, "longer than 255"),
    ("h.org/" + "x" * 256, "longer than 255"),
    ("host:port/a", "'host:port' is no registry"),
    ("host:/a", "'host:' is no registry"),
    ("host:123456/a", "is no registry"),
    ("host:65536/a", "65536 is no port"),
    ("host:0/a", "0 is no port"),
    ("-host.org/a", "is no registry"),
    ("host-.org/a", "is no registry"),
    ("host..org/a", "is no registry"),
    (".org/a", "is no registry"),
    ("host_1.org/a", "is no registry"),
    ("user@host.org/a", "no sha256 digest"),
    ("[::1/a", "is no registry"),
    ("[]:1/a", "is no registry"),
    ("[1]:1/a", "is no registry"),
    ("[::1%eth0]/a", "is no registry"),
    ("::1/a", "is no registry"),
]


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"), [row[:5] for row in GOOD]
)
def test_good(text: str, registry: str, repository: str, tag: str, digest: str) -> None:
    assert parse_reference(text) == Reference(registry, repository, tag, digest)


@pytest.mark.parametrize(("text", "canonical"), [(row[0], row[5] or row[0]) for row in GOOD])
def test_the_canonical_text_means_the_same(text: str, canonical: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == canonical
    assert parse_reference(canonical) == reference
    assert parse_reference(reference.full) == reference


def test_the_full_text_leaves_nothing_out() -> None:
    assert parse_reference("debian").full == "docker.io/library/debian:latest"
    assert parse_reference(f"a/b@{DIGEST}").full == f"docker.io/a/b@{DIGEST}"
    assert parse_reference("h:1/a:2").full == "h:1/a:2"


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
        ("127.example.org/a", False),
        ("127.0.0.1.example.org:5000/a", False),
        ("[::2]:5000/a", False),
        ("10.0.0.1:5000/a", False),
    ],
)
def test_loopback(text: str, loopback: bool) -> None:
    assert parse_reference(text).loopback is loopback


PARTS = st.from_regex(r"[a-z0-9]{1,5}([._-][a-z0-9]{1,3})?|library|localhost", fullmatch=True)
HOSTS = ("localhost", "h:5000", "a.example.org", "[::1]:1", "docker.io", "A", "docker.io:1")
REFERENCES = st.builds(
    Reference,
    registry=st.sampled_from(HOSTS),
    repository=st.lists(PARTS, min_size=2, max_size=4).map("/".join),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.sampled_from((None, DIGEST)),
)
ALMOST = st.text(alphabet="ab0Z.:/@-_[]%# \nlibrary", max_size=40)
WORDS = st.sampled_from(
    ("docker.io", "index.docker.io", "library", "localhost", "a.b", "/", ":", ":1", "@", DIGEST)
)


@given(REFERENCES)
def test_text_and_reference_go_both_ways(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert parse_reference(f"docker://{reference}") == reference
    assert parse_reference(reference.full) == reference


@given(REFERENCES, REFERENCES)
def test_two_references_have_two_texts(one: Reference, other: Reference) -> None:
    assert (str(one) == str(other)) == (one == other)
    assert (one.full == other.full) == (one == other)


@given(st.one_of(st.text(), ALMOST, st.lists(WORDS, max_size=8).map("".join)))
def test_any_text_is_a_reference_or_a_users_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UserError:
        return
    assert parse_reference(str(reference)) == reference
    assert str(parse_reference(str(reference))) == str(reference)
    assert not str(reference).startswith("-")
