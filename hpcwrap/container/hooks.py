"""Hooks of CDI specs, done in our own way: no program of a spec is run.

A hook is a program of the host that container runtimes start as root with the container's root as
an argument; it would follow links of the image, with root's rights.  Those that NVIDIA's toolkit
writes into specs are known by their names, and what they are for is done elsewhere, or needs no
doing.  A hook that is not known makes its device unusable: docs/decisions/0060.
"""

from __future__ import annotations

import os
from typing import List, Sequence, Tuple

from hpcwrap.container.cdi import Hook
from hpcwrap.errors import SiteError

PROGRAMS = ("nvidia-ctk", "nvidia-cdi-hook")

NEEDLESS = {
    "update-ldcache": "libraries are put where the image's dynamic linker looks",
    "enable-cuda-compat": "the image's CUDA compatibility libraries are looked for",
    "disable-device-node-modification": "nobody has the right to make device nodes inside",
    "update-application-profile": "GPUs of others cannot be opened, by EGL neither",
    "chmod": "directories of /dev have the host's mode",
}
"""Hooks that need no step of their own, and why."""

Link = Tuple[str, str]
"""What a symbolic link says, and its path inside."""


def links(hooks: Sequence[Hook]) -> Tuple[Link, ...]:
    """The symbolic links that hooks would make.  Raises SiteError for a hook that is not known."""
    found = []
    for hook in hooks:
        name, *options = subcommand(hook)
        if name == "create-symlinks":
            found += [read_link(text, hook) for text in values("link", options)]
        elif name not in NEEDLESS:
            raise SiteError(
                f"{hook.origin}: cannot do what the hook {hook.path} {name} is for",
                "hooks are not run as programs; take it out of the spec if it is not needed",
            )
    return tuple(found)


def subcommand(hook: Hook) -> List[str]:
    """The subcommand and its options: ``nvidia-ctk hook NAME …`` or ``nvidia-cdi-hook NAME …``."""
    words = list(hook.arguments[1:])
    if os.path.basename(hook.path) not in PROGRAMS:
        return ["", *words]
    if words[:1] == ["hook"]:
        words = words[1:]
    return words or [""]


def values(option: str, words: Sequence[str]) -> List[str]:
    """Values of an option that may come several times, as ``--link X`` or ``--link=X``."""
    found = []
    for number, word in enumerate(words):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == option:
            found += [value] if equals else list(words[number + 1 : number + 2])
    return found


def read_link(text: str, hook: Hook) -> Link:
    """Read ``TARGET::LINK``.  Raises SiteError."""
    target, separator, link = text.partition("::")
    if not (target and separator and link.startswith("/")) or ".." in link.split("/"):
        raise SiteError(f"{hook.origin}: cannot make the link {text!r}: it is no TARGET::/LINK")
    return target, link
