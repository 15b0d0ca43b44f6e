"""Hooks of CDI specs, as NVIDIA's tools of several years write them."""

from __future__ import annotations

from typing import Sequence

import pytest

from hpcwrap.container.cdi import Hook
from hpcwrap.container.hooks import links
from hpcwrap.errors import SiteError

CTK, HOOK = "/usr/bin/nvidia-ctk", "/usr/bin/nvidia-cdi-hook"
CUDA = "libcuda.so.1::/usr/lib64/libcuda.so"
CARD = "../card1::/dev/dri/by-path/pci-0000:3b:00.0-card"


def hook(path: str, *arguments: str) -> Hook:
    return Hook(path, arguments, "/etc/cdi/nvidia.yaml:7")


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ((CTK, "nvidia-ctk", "hook", "create-symlinks", "--link", CUDA), [CUDA]),
        (
            (HOOK, "nvidia-cdi-hook", "create-symlinks", "--link", CUDA, "--link", CARD),
            [CUDA, CARD],
        ),
        ((HOOK, "nvidia-cdi-hook", "create-symlinks", f"--link={CUDA}"), [CUDA]),
        (("/opt/nvidia/toolkit/nvidia-cdi-hook", "x", "create-symlinks", "--link", CUDA), [CUDA]),
        ((CTK, "nvidia-ctk", "hook", "update-ldcache", "--folder", "/usr/lib64"), []),
        ((CTK, "nvidia-ctk", "hook", "chmod", "--mode", "755", "--path", "/dev/dri"), []),
        ((HOOK, "nvidia-cdi-hook", "update-ldcache", "--ldconfig-path", "/sbin/ldconfig"), []),
        ((HOOK, "nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=580.1"), []),
        ((HOOK, "nvidia-cdi-hook", "disable-device-node-modification"), []),
        ((HOOK, "nvidia-cdi-hook", "update-application-profile"), []),
    ],
)
def test_known_hooks(arguments: Sequence[str], made: Sequence[str]) -> None:
    assert links([hook(*arguments)]) == tuple(tuple(text.split("::")) for text in made)


@pytest.mark.parametrize(
    "arguments",
    [
        (HOOK,),
        (HOOK, "nvidia-cdi-hook"),
        (HOOK, "nvidia-cdi-hook", "update-everything"),
        (CTK, "nvidia-ctk", "hook"),
        ("/usr/bin/other", "nvidia-cdi-hook", "update-ldcache"),
        ("/bin/sh", "sh", "-c", "true"),
        (HOOK, "nvidia-cdi-hook", "create-symlinks", "--link", "libcuda.so"),
        (HOOK, "nvidia-cdi-hook", "create-symlinks", "--link", "x::relative"),
        (HOOK, "nvidia-cdi-hook", "create-symlinks", "--link", "x::/a/../../b"),
    ],
)
def test_what_is_not_known_is_refused_with_its_line(arguments: Sequence[str]) -> None:
    with pytest.raises(SiteError, match=r"^/etc/cdi/nvidia\.yaml:7: cannot "):
        links([hook(*arguments)])
