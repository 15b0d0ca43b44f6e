"""The site's patterns for images."""

from __future__ import annotations

import pytest

from hpcwrap.errors import UserError
from hpcwrap.image.allow import check_allowed, matches

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("docker.io/library/debian:12", "docker.io/library/debian:12"),
        ("docker.io/library/debian", "docker.io/library/debian:12"),
        ("docker.io/library/debian", f"docker.io/library/debian@{DIGEST}"),
        ("docker.io/library/debian", f"docker.io/library/debian:12@{DIGEST}"),
        ("docker.io/library/*", "docker.io/library/debian:12"),
        ("docker.io/*/debian:12", "docker.io/library/debian:12"),
        ("docker.io/library/debian:*", "docker.io/library/debian:12"),
        ("registry.site:5000/**", "registry.site:5000/a/b/c:1"),
        ("registry.site:5000/app", "registry.site:5000/app:1"),
        ("**/debian:12", "docker.io/library/debian:12"),
        ("**", "oci:/data/layout:1"),
        ("*.site/app:1", "registry.site/app:1"),
        ("squashfs:/data/images/**", "squashfs:/data/images/a/b.sqsh"),
        ("sif:/data/*.sif", "sif:/data/tool.sif"),
        ("oci:/data/layout", "oci:/data/layout:1"),
        ("tar:/data/a+b[1].tar", "tar:/data/a+b[1].tar"),
    ],
)
def test_what_a_pattern_matches(pattern: str, text: str) -> None:
    assert matches(text, [pattern])
    check_allowed(text, ["nothing", pattern])


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("docker.io/library/debian:12", "docker.io/library/debian:13"),
        ("docker.io/library/debian:12", f"docker.io/library/debian:12@{DIGEST}"),
        ("docker.io/library/debian", "docker.io/library/debian-evil:12"),
        ("docker.io/library/debian", "docker.io/library/debian/evil:12"),
        ("docker.io/*", "docker.io/library/debian:12"),
        ("registry.site/**", "registry.site:5000/a:1"),
        ("registry.site/**", "registry.site.evil/a:1"),
        ("registry.site/**", "evil/registry.site/a:1"),
        ("registry.site", "registry.site:5000/a:1"),
        ("registry?site/a", "registry.site/a:1"),
        ("registry.site/a", "registryxsite/a:1"),
        ("registry.site/[ab]:1", "registry.site/a:1"),
        ("/data/**", "squashfs:/data/a.sqsh"),
        ("squashfs:/data/**", "squashfs:/data/../home/u/a.sqsh"),
        ("squashfs:/data/**", "squashfs:/data/.."),
        ("", "docker.io/library/debian:12"),
    ],
)
def test_what_a_pattern_does_not_match(pattern: str, text: str) -> None:
    assert not matches(text, [pattern])


def test_no_pattern_allows_everything_and_shares_nothing() -> None:
    check_allowed("docker.io/library/debian:12", [])
    assert not matches("docker.io/library/debian:12", [])


def test_a_refusal_names_the_setting_and_what_it_has() -> None:
    with pytest.raises(UserError) as caught:
        check_allowed("docker.io/evil/miner:1", ["registry.site/**", "docker.io/library/*"])
    assert caught.value.sentence() == (
        "cannot use the image docker.io/evil/miner:1: this site does not allow it"
        " (its setting allow_images has registry.site/**, docker.io/library/*)"
    )


def test_a_refusal_lists_no_more_than_a_few() -> None:
    with pytest.raises(UserError) as caught:
        check_allowed("b:1", [f"a{n}" for n in range(9)])
    assert caught.value.hint == "its setting allow_images has a0, a1, a2, a3, a4, …"
