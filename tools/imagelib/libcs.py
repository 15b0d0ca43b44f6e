"""Images whose C library is not the host's: musl, and a newer glibc.

Beside busybox-1, which has none at all, they show that the host's commands work in any image.
"""

from __future__ import annotations

import os

from clusterlib.roots import UNDATED

from imagelib import debian
from imagelib.commands import run
from imagelib.layers import file_entry, read_entries
from imagelib.oci import Layer
from imagelib.recipes import SYSTEM_PATH, Recipe, busybox_layers, settings
from imagelib.suites import mirror

SUITE = "sid"
PACKAGES = ("base-files", "dash", "coreutils")

RUNNER = """\
#include <errno.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

int main(int count, char **arguments)
{
    int status;
    pid_t child;
    if (count < 2 || posix_spawnp(&child, arguments[1], 0, 0, arguments + 1, environ) != 0)
        return 127;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return 126;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
"""


def musl_layers(work: str) -> list[Layer]:
    """Busybox's programs; then musl, with a program of it that starts others."""
    tiny, musl, tar = (os.path.join(work, name) for name in ("tiny", "musl", "musl.tar"))
    os.mkdir(tiny)
    os.mkdir(musl)
    debian.unpack_package("musl", musl)
    run(["tar", "--create", f"--file={tar}", "--sort=name", f"--directory={musl}", "lib"])
    runner = file_entry("bin/musl-run", compiled_runner(work), 0o755)
    return [*busybox_layers(tiny), Layer([*read_entries(tar), runner], "musl")]


def compiled_runner(work: str) -> bytes:
    """RUNNER as a program that the image's musl loads."""
    source, program = os.path.join(work, "runner.c"), os.path.join(work, "runner")
    with open(source, "w", encoding="ascii") as file:
        file.write(RUNNER)
    run(["musl-gcc", "-O2", "-s", "-Wall", "-Werror", "-o", program, source])
    with open(program, "rb") as file:
        return file.read()


def sid_layers(work: str) -> list[Layer]:
    """A shell and its tools, unpacked as Debian has them today."""
    tar = os.path.join(work, "root.tar")
    words = ["--mode=root", "--variant=extract", UNDATED, f"--include={','.join(PACKAGES)}"]
    run(["mmdebstrap", *words, SUITE, tar, f"deb {mirror()} {SUITE} main"])
    return [Layer(read_entries(tar), f"Debian {SUITE}: {' '.join(PACKAGES)}")]


MUSL_1 = Recipe("musl-1", musl_layers, settings("musl-1", "Busybox and musl", "/bin", "/", "sh"))
SID_1 = Recipe(
    "sid-1", sid_layers, settings("sid-1", "Debian's newest glibc", SYSTEM_PATH, "/", "sh")
)
LIBCS = {each.name: each for each in (MUSL_1, SID_1)}
