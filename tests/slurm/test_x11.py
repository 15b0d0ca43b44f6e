"""Slurm's X11 forwarding: a program inside finds its display, and the way there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Iterator, Tuple

import pytest
from site_tools import NODES, Site
from slurm_conf import script, switched_on

pytestmark = pytest.mark.slurm

DISPLAY = "localhost:99"
COOKIE = "0123456789abcdef0123456789abcdef"

# No X server is needed to see that bytes arrive: what connects to the display is answered.
ANSWER = """
import os, socket
listener = socket.create_server(("127.0.0.1", 6099))
if os.fork() == 0:
    os.setsid()
    for number in (0, 1, 2):
        os.dup2(os.open("/dev/null", os.O_RDWR), number)
    listener.settimeout(300)
    for _ in range(2):
        connection = listener.accept()[0]
        connection.sendall(b"display\\n")
        connection.close()
"""

ASK = """
echo display=$DISPLAY
grep -c MIT-MAGIC-COOKIE-1 "$XAUTHORITY"
number=${DISPLAY#*:}
exec 3<>/dev/tcp/localhost/$((6000 + ${number%.*}))
head -n 1 <&3
"""


LEND = """
for library in /shared/xauth/*.so.*; do
    ldconfig -p | grep -qF "${library##*/} " || cp "$library" /usr/local/lib
done
ldconfig
cp /shared/xauth/xauth /usr/bin
"""


def lend_xauth(site: Site) -> None:
    """Give nodes whose packages have no xauth this machine's, with the libraries they lack."""
    program = shutil.which("xauth")
    assert program
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    directory = Path(site.state, "shared", "xauth")
    directory.mkdir(exist_ok=True)
    for file in (program, *re.findall(r"=> (/\S+)", listed)):
        shutil.copy(file, directory)
    for node in ("ctl", *NODES):
        script(site, node, LEND)


@pytest.fixture(scope="module", autouse=True)
def forwarding(site: Site) -> Iterator[None]:
    """X11 forwarding, which needs proctrack/cgroup, and a display on the submit host for alice."""
    if site.root("ctl", "which", "xauth").code != 0:
        lend_xauth(site)
    lines = ("PrologFlags=Alloc,X11", "ProctrackType=proctrack/cgroup")
    with switched_on(site, lines, {"cgroup.conf": "CgroupPlugin=cgroup/v1\n"}):
        script(site, "ctl", f"python3 -c '{ANSWER}'")
        site.need("cluster", "as", "alice", "xauth", "add", DISPLAY, ".", COOKIE)
        yield
    site.alice("rm", "-f", ".Xauthority")


@pytest.mark.parametrize("where", [(), ("--container=debian-12",)], ids=["host", "container"])
def test_a_program_reaches_its_display(site: Site, where: Tuple[str, ...]) -> None:
    command = ("srun", "--x11", *where, "bash", "-c", ASK)
    ran = site.alice("env", f"DISPLAY={DISPLAY}.0", *command)
    assert ran.code == 0, ran.stderr
    assert re.fullmatch(r"display=localhost:\d+\.0\n1\ndisplay\n", ran.stdout)
