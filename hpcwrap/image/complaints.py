"""What skopeo says when it fails: whose fault it is, and whether it may pass.

The wording is containers/image's (docker/docker_client.go, docker/errors.go, signature/) and Go's
net packages'; what is not known here is handed on as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional, Sequence, Type

from hpcwrap import run
from hpcwrap.errors import DeniedError, HpcwrapError, SiteError, UserError
from hpcwrap.image.access import Access
from hpcwrap.image.reference import Reference
from hpcwrap.image.worker import MAKE_ROOM, STORE_FULL

STALLED = '\nlevel=fatal msg="no byte came"\n'
"""What is written below skopeo's own words when it was ended because nothing came any more."""

MAX_QUOTED = 500


class Rule(NamedTuple):
    """What a text means: a pattern in it, whose fault that is, what is wrong, and what to do."""

    pattern: str
    kind: Type[HpcwrapError]
    meaning: str
    hint: str = ""
    may_pass: bool = False


LATER = "it may work later; tell the administrator if it stays like this"
SIGNED = "ask for a signed image, or the administrator for another policy"

# The first that fits counts: what names its cause precisely comes before what many causes share.
RULES: Sequence[Rule] = (
    Rule(
        r"no space left on device|[Dd]isk quota exceeded",
        SiteError,
        STORE_FULL,
        MAKE_ROOM,
    ),
    Rule(r"^no byte came$", SiteError, "the registry sends nothing any more", LATER, True),
    Rule(
        r"[Tt]oo ?[Mm]any ?[Rr]equests|[Ss]tatus(Code)?:? 429",
        SiteError,
        "the registry takes no more requests from this site for now",
        "a mirror or a password helps: see the settings registries_conf and auth_file",
        True,
    ),
    Rule(
        r"signature was required, but no signature exists",
        UserError,
        "the site's policy.json wants a signature, and it has none",
        SIGNED,
    ),
    Rule(
        r"rejected: .*([Ss]ignature|[Ii]dentity|[Kk]ey )",
        UserError,
        "the site's policy.json wants another signature than it has",
        SIGNED,
    ),
    Rule(r"rejected by policy", UserError, "the site's policy.json does not allow it", SIGNED),
    Rule(
        r"trust policy|invalid policy",
        SiteError,
        "the site's policy.json cannot be used: {text}",
        "see the setting policy",
    ),
    Rule(
        r"is blocked in ",
        UserError,
        "the site's registries.conf blocks its registry",
        "ask the administrator",
    ),
    Rule(
        r"registries( configuration|\.conf)",
        SiteError,
        "the site's registries.conf cannot be used: {text}",
        "see the setting registries_conf",
    ),
    Rule(
        r"unauthorized|authentication required|invalid username/password"
        r"|access (to the resource is )?denied|^denied|: denied"
        r"|[Ss]tatus(Code| code from registry)?:? 40[13]",
        DeniedError,
        "",
    ),
    Rule(
        r"manifest unknown|name unknown|not known to registry"
        r"|[Ss]tatus(Code)?:? 404|404 \(?Not Found",
        UserError,
        "the registry does not have it",
        "check repository and tag",
    ),
    Rule(
        r"[Dd]igest did not match|does not match (expected|provided manifest digest)|Size mismatch",
        SiteError,
        "a digest did not match what the registry sent",
        "somebody changed it, there or on its way",
    ),
    Rule(r"x509|certificate", SiteError, "the registry's certificate is not trusted: {text}"),
    Rule(
        r"HTTP response to HTTPS",
        SiteError,
        "the registry has no TLS",
        "registries.conf may say insecure = true",
    ),
    Rule(
        r"[Ss]tatus(Code| code from registry)?:? 5\d\d|HTTP status: 5\d\d|: 5\d\d \(",
        SiteError,
        "the registry does not work",
        LATER,
        True,
    ),
    Rule(
        r"(i/o|handshake|connection) time(d )?out|[Tt]imeout exceeded|deadline exceeded",
        SiteError,
        "the registry does not answer in time",
        LATER,
        True,
    ),
    Rule(
        r"EOF|reset by peer|broken pipe|GOAWAY|stream error|server closed|closed network",
        SiteError,
        "the connection to the registry broke off",
        LATER,
        True,
    ),
    Rule(
        r"server misbehaving|[Tt]emporary failure|unreachable|no route to host",
        SiteError,
        "the registry cannot be reached",
        LATER,
        True,
    ),
    # Nobody listens, or there is no such name: that is an answer, and it comes at once.
    Rule(
        r"connection refused|no such host|dial tcp",
        SiteError,
        "the registry cannot be reached",
        LATER,
    ),
)


def failure(stderr: str) -> str:
    """What failed in the end, of all that skopeo wrote with --debug."""
    messages = re.findall(r'level=fatal msg="((?:[^"\\]|\\.)*)"', stderr)
    if not messages:
        return run.last_line(stderr)
    return str(messages[-1]).replace('\\"', '"').replace("\\n", "\n")


def may_pass(reference: Reference, text: str) -> bool:
    """Whether a failure is of a kind that goes away by itself."""
    rule = _rule(reference, text)
    return rule is not None and rule.may_pass


def translate(reference: Reference, access: Access, text: str, failures: int = 1) -> HpcwrapError:
    """What failed, as one of our errors; `failures` is how often it was tried."""
    rule = _rule(reference, text)
    if rule is None:
        return SiteError(f"cannot pull the image {reference}: {text[:MAX_QUOTED]}")
    if rule.kind is DeniedError:
        return _denied(reference, access)
    meaning = _named(reference, rule.meaning).format(text=text[:MAX_QUOTED])
    tried = f", tried {failures} times" if failures > 1 else ""
    return rule.kind(f"cannot pull the image {reference}: {meaning}{tried}", rule.hint)


def _rule(reference: Reference, text: str) -> Optional[Rule]:
    # An image may be called `timeout` or `policy`: the words that name it say nothing.
    words = [word for word in text.split() if reference.name not in word]
    rest = " ".join(words)
    return next((rule for rule in RULES if re.search(rule.pattern, rest)), None)


def _denied(reference: Reference, access: Access) -> DeniedError:
    meaning = "the registry does not give it to us without a password"
    hint = "is the name right? log in with podman login or docker login"
    # The site's passwords may be for other registries.
    if reference.registry.encode() in access.auth:
        meaning = "the registry does not give it for the password that it was shown"
        hint = "is the name right? is the login still valid?"
    return DeniedError(f"cannot pull the image {reference}: {_named(reference, meaning)}", hint)


def _named(reference: Reference, meaning: str) -> str:
    """The meaning, with the registry's name where the reference leaves it out: docker.io."""
    if str(reference).startswith(f"{reference.registry}/"):
        return meaning
    return meaning.replace("the registry", f"the registry {reference.registry}", 1)
