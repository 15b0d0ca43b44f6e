"""Sources: what each text names, and what the texts that name nothing are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcwrap.errors import UserError
from hpcwrap.image.reference import parse_reference
from hpcwrap.image.source import PATHS, parse_source

DIGEST = "sha256:" + "0123456789abcdef" * 4

GOOD = [
    # text, transport, path, name of the image or of its registry's, canonical text
    ("debian:12", "docker", "", "docker.io/library/debian:12", "debian:12"),
    ("docker://debian", "docker", "", "docker.io/library/debian:latest", "debian:latest"),
    (f"h.org/a@{DIGEST}", "docker", "", f"h.org/a@{DIGEST}", f"h.org/a@{DIGEST}"),
    ("oci:1.0", "docker", "", "docker.io/library/oci:1.0", "oci:1.0"),
    ("sif", "docker", "", "docker.io/library/sif:latest", "sif:latest"),
    ("docker:27", "docker", "", "docker.io/library/docker:27", "docker:27"),
    ("docker", "docker", "", "docker.io/library/docker:latest", "docker:latest"),
    ("/a/x.sif", "file", "/a/x.sif", "", "/a/x.sif"),
    ("//a/./x.sif/", "file", "/a/x.sif", "", "/a/x.sif"),
    ("/a b/ü:1@2", "file", "/a b/ü:1@2", "", "/a b/ü:1@2"),
    ("oci:/a/layout", "oci", "/a/layout", "", "oci:/a/layout"),
    ("oci:/a/layout:v1", "oci", "/a/layout", "v1", "oci:/a/layout:v1"),
    ("oci:/a:h.org/b:1", "oci", "/a", "h.org/b:1", "oci:/a:h.org/b:1"),
    ("dir:/a", "dir", "/a", "", "dir:/a"),
    ("oci-archive:/a.tar:v1", "oci-archive", "/a.tar", "v1", "oci-archive:/a.tar:v1"),
    ("docker-archive:/a.tar", "docker-archive", "/a.tar", "", "docker-archive:/a.tar"),
    ("docker-archive:/a.tar:b:1", "docker-archive", "/a.tar", "b:1", "docker-archive:/a.tar:b:1"),
    ("docker-archive:/a.tar:@0", "docker-archive", "/a.tar", "@0", "docker-archive:/a.tar:@0"),
    ("tar:/a:b.tar.gz", "tar", "/a:b.tar.gz", "", "tar:/a:b.tar.gz"),
    ("rootfs:/srv/chroot/", "rootfs", "/srv/chroot", "", "rootfs:/srv/chroot"),
    ("squashfs:/a.sqsh", "squashfs", "/a.sqsh", "", "squashfs:/a.sqsh"),
    ("sif:/a//b.sif", "sif", "/a/b.sif", "", "sif:/a/b.sif"),
    (
        "docker-daemon:a",
        "docker-daemon",
        "",
        "docker.io/library/a:latest",
        "docker-daemon:a:latest",
    ),
    (
        "containers-storage:localhost/a:1",
        "containers-storage",
        "",
        "localhost/a:1",
        "containers-storage:localhost/a:1",
    ),
    (
        "docker://docker-daemon:1",
        "docker",
        "",
        "docker.io/library/docker-daemon:1",
        "docker.io/library/docker-daemon:1",
    ),
]

BAD = [
    # text, reason, hint
    ("library://alpine", "does not read images from library://", "sif:/PATH"),
    ("shub://a/b", "does not read images from shub://", "sif:/PATH"),
    ("oras://h.org/a:1", "does not read images from oras://", "sif:/PATH"),
    ("https://h.org/a:1", "does not read images from https://", "without https://"),
    ("http://h.org/a.tar", "does not read images from http://", "without http://"),
    ("dockerd://a", "does not read images from dockerd://", "docker-daemon:NAME"),
    ("podman://a", "does not read images from podman://", "containers-storage:NAME"),
    ("file:///a.sif", "does not read images from file:", "the path alone"),
    ("docker:a/b:1", "does not read images from docker:", "docker://NAME"),
    ("docker:debian:12", "does not read images from docker:", "docker://NAME"),
    ("sandbox:/a", "does not read images from sandbox:", "rootfs:/PATH"),
    ("ftp://h.org/a", "knows no ftp://", ""),
    ("docker://nvcr.io#nvidia/a:1", "# cannot be part", "write /"),
    ("nvcr.io#nvidia/a:1", "# cannot be part", "write /"),
    ("./x.sif", "does not begin with /", "full path"),
    ("../x.sif", "does not begin with /", "full path"),
    ("~/x.sif", "does not begin with /", "full path"),
    ("sif:./x.sif", "does not begin with /", "full path"),
    ("sif:~/x.sif", "does not begin with /", "full path"),
    ("oci:a/layout", "does not begin with /", "full path"),
    ("/a/../b", "holds ..", "full path"),
    ("sif:/a/..", "holds ..", "full path"),
    ("rootfs:/", "the root of the host", "below it"),
    ("/", "the root of the host", "below it"),
    ("/a\nb", "cannot be shown", "rename"),
    ("tar:/a\0b", "cannot be shown", "rename"),
    ("/a\udcff", "cannot be shown", "rename"),
    ("/" + "ü" * 2048, "longer than 4095 bytes", ""),
    ("oci:/a:", "'' is no name of an image", "leave out"),
    ("oci:/a:b c", "is no name of an image", "leave out"),
    ("docker-archive:/a:$(b)", "is no name of an image", "leave out"),
    ("docker-daemon:A", "lower-case", ""),
    ("containers-storage:[overlay@/a]b", "cannot read the image reference", ""),
    ("Debian", "lower-case", ""),
    ("", "no repository", ""),
]


@pytest.mark.parametrize(("text", "transport", "path", "name", "canonical"), GOOD)
def test_good(text: str, transport: str, path: str, name: str, canonical: str) -> None:
    source = parse_source(text)
    assert (source.transport, source.path) == (transport, path)
    assert (source.reference.full if source.reference else source.name) == name
    assert str(source) == canonical
    assert parse_source(canonical) == source
    assert source.local == (transport != "docker")


@pytest.mark.parametrize(("text", "reason", "hint"), BAD)
def test_bad(text: str, reason: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_source(text)
    assert reason in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("docker-daemon:a:1", "docker-daemon:docker.io/library/a:1"),
        ("oci:/a:1", "oci:/a:1"),
        ("/a/b", "file:/a/b"),
    ],
)
def test_allow_lists_see_the_whole_text(text: str, full: str) -> None:
    assert parse_source(text).full == full


PREFIXES = st.sampled_from(("", "docker://", "/", "docker-daemon:", "containers-storage:", "x://"))
TRANSPORTS = st.sampled_from([f"{transport}:" for transport in PATHS])
TEXTS = st.text(alphabet="ab0Z.:/@-_# \nü", max_size=20)


@given(st.one_of(st.text(), st.builds("{}{}".format, st.one_of(PREFIXES, TRANSPORTS), TEXTS)))
def test_any_text_is_a_source_or_a_users_error(text: str) -> None:
    try:
        source = parse_source(text)
    except UserError:
        return
    assert parse_source(str(source)) == source
    assert str(parse_source(str(source))) == str(source)


@given(st.text(alphabet="abz0:./-@_", max_size=12))
def test_every_reference_is_the_source_of_its_canonical_text(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UserError:
        return
    assert parse_source(f"docker://{text}").reference == reference
