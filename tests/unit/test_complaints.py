"""What skopeo says when it fails, in our words."""

from __future__ import annotations

from typing import Type

import pytest

from hpcwrap.errors import DeniedError, HpcwrapError, SiteError, UserError
from hpcwrap.image.access import ANONYMOUS, Access
from hpcwrap.image.complaints import STALLED, failure, may_pass, translate
from hpcwrap.image.reference import parse_reference

REFERENCE = parse_reference("h.org/a:1")
URL = 'Get \\"https://h.org/v2/\\": '
LATER = True


def said(text: str) -> str:
    return (
        'time="2026-01-01T00:00:00Z" level=debug msg="GET https://h.org/v2/"\n'
        f'time="2026-01-01T00:00:00Z" level=fatal msg="{text}"\n'
    )


@pytest.mark.parametrize(
    ("text", "kind", "meaning", "later"),
    [
        ("reading manifest 1 in h.org/a: manifest unknown", UserError, "does not have it", False),
        ("reading manifest 1 in h.org/a: StatusCode: 404, x", UserError, "not have it", False),
        (
            "initializing source docker://h.org/a:1: unauthorized: authentication required",
            DeniedError,
            "does not give it to us without a password",
            False,
        ),
        ("requested access to the resource is denied", DeniedError, "without a password", False),
        (
            "unable to retrieve auth token: invalid username/password: x",
            DeniedError,
            "password",
            False,
        ),
        ("StatusCode: 403, <html>", DeniedError, "without a password", False),
        ("received unexpected HTTP status: 502 Bad Gateway", SiteError, "does not work", LATER),
        (
            "Error fetching blob: invalid status code from registry 503 (x)",
            SiteError,
            "work",
            LATER,
        ),
        ("StatusCode: 500, oops", SiteError, "the registry does not work", LATER),
        ("reading manifest: too many requests to registry", SiteError, "no more requests", LATER),
        ("toomanyrequests: You have reached your pull rate limit", SiteError, "no more", LATER),
        (f"{URL}dial tcp: lookup h.org: no such host", SiteError, "cannot be reached", False),
        (f"{URL}dial tcp 127.0.0.1:1: connect: connection refused", SiteError, "reached", False),
        (f"{URL}dial tcp: lookup h on x:53: server misbehaving", SiteError, "reached", LATER),
        (f"{URL}dial tcp 10.0.0.1:443: i/o timeout", SiteError, "not answer in time", LATER),
        (f"{URL}net/http: TLS handshake timeout", SiteError, "not answer in time", LATER),
        ("writing blob: happened during read: unexpected EOF", SiteError, "broke off", LATER),
        ("read tcp 1.2.3.4:5: read: connection reset by peer", SiteError, "broke off", LATER),
        ("writing blob: write /x: no space left on device", SiteError, "the store is full", False),
        ("write /x: disk quota exceeded", SiteError, "the store is full", False),
        ("tls: failed to verify certificate: x509: who?", SiteError, "not trusted: tls", False),
        ("http: server gave HTTP response to HTTPS client", SiteError, "has no TLS", False),
        (
            "Source image rejected: Running image docker://h.org/a:1 is rejected by policy.",
            UserError,
            "the site's policy.json does not allow it",
            False,
        ),
        (
            "Source image rejected: A signature was required, but no signature exists",
            UserError,
            "the site's policy.json wants a signature, and it has none",
            False,
        ),
        (
            "Source image rejected: Invalid GPG signature: gpgme.Signature{}",
            UserError,
            "policy.json wants another signature",
            False,
        ),
        (
            "Error loading trust policy: open /p.json: permission denied",
            SiteError,
            "the site's policy.json cannot be used: Error loading trust policy: open /p.json",
            False,
        ),
        (
            "registry h.org is blocked in /etc/containers/registries.conf or /x",
            UserError,
            "the site's registries.conf blocks its registry",
            False,
        ),
        (
            "writing blob: Digest did not match, expected sha256:aa, got sha256:bb",
            SiteError,
            "a digest did not match what the registry sent",
            False,
        ),
        ("something quite new", SiteError, "something quite new", False),
    ],
)
def test_what_skopeo_says(text: str, kind: Type[HpcwrapError], meaning: str, later: bool) -> None:
    ending = failure(said(text))
    error = translate(REFERENCE, ANONYMOUS, ending)
    assert type(error) is kind
    assert error.message.startswith("cannot pull the image h.org/a:1: ")
    assert meaning in error.message
    assert may_pass(REFERENCE, ending) is later


@pytest.mark.parametrize("name", ["h.org/timeout:1", "h.org/policy/eof:1", "h.org/denied:1"])
def test_an_image_may_be_called_as_it_likes(name: str) -> None:
    reference = parse_reference(name)
    text = f"reading manifest 1 in {reference.name}: manifest unknown: manifest unknown"
    assert "does not have it" in translate(reference, ANONYMOUS, text).message
    assert not may_pass(reference, text)


@pytest.mark.parametrize("text", ["manifest unknown", "dial tcp: no such host", "unauthorized"])
def test_the_registry_has_a_name_where_the_reference_leaves_it_out(text: str) -> None:
    assert "the registry docker.io " in translate(parse_reference("smal"), ANONYMOUS, text).message
    assert "docker.io" not in translate(REFERENCE, ANONYMOUS, text).message


def test_what_was_ended_for_silence() -> None:
    text = failure(said("x").replace("fatal", "debug") + STALLED)
    assert may_pass(REFERENCE, text)
    assert translate(REFERENCE, ANONYMOUS, text, 5).sentence() == (
        "cannot pull the image h.org/a:1: the registry sends nothing any more, tried 5 times"
        " (it may work later; tell the administrator if it stays like this)"
    )


def test_a_refusal_tells_whether_there_was_a_password() -> None:
    text = "unauthorized: authentication required"
    assert translate(REFERENCE, ANONYMOUS, text).sentence() == (
        "cannot pull the image h.org/a:1: the registry does not give it to us without a password"
        " (is the name right? log in with podman login or docker login)"
    )
    assert translate(REFERENCE, Access(auth=b'{"h.org": {}}'), text).sentence() == (
        "cannot pull the image h.org/a:1: the registry does not give it for the password that it"
        " was shown (is the name right? is the login still valid?)"
    )


def test_the_last_line_counts_where_there_is_no_log() -> None:
    assert failure("setpriv: something\nfailed to execute skopeo\n") == "failed to execute skopeo"
    assert failure("") == "no message"


def test_an_access_does_not_show_its_password() -> None:
    assert "geheim" not in repr(Access(auth=b"geheim"))
    assert "geheim" not in f"{Access(auth=b'geheim')}"
